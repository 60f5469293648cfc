"""Grad-CAM, guided backpropagation, occlusion, activations and filters.

`images` are f[B, H, W, 3], normalized as the model expects, and `labels` i[B] are the classes to
explain. Layers are convolutions with torchvision's names. A model is never changed: to read or
change the output of a convolution, a `Tap` replaces it in a copy that shares the model's arrays.
"""

import difflib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from imagenet_jax.errors import UserError
from imagenet_jax.models import family
from imagenet_jax.models.base import Model, Path, submodule
from imagenet_jax.models.folding import fold_batch_norm
from imagenet_jax.models.layers import StandardizedConv, standardize

Array = jax.Array | np.ndarray

_OCCLUDED_ROWS = 64  # images in a batch of occluded images
_CALLS = ("jit", "pjit")  # JAX's new and old names for a call of a compiled function


def conv_layers(model: Model) -> tuple[str, ...]:
    """Return the name of each convolution from input to output: "conv1", "layer1.0.conv1", ...

    These are torchvision's module names (timm's for BiT). Convolutions of the classifier and of
    auxiliary heads are left out.
    """
    return tuple(_paths(model))


def check_layer(model: Model, layer: str) -> None:
    """Raise UserError, with the nearest name, unless `layer` is a convolution of the model."""
    names = conv_layers(model)
    if layer in names:
        return
    # The layers are norms, linear layers and everything else that has parameters.
    paths = [path[:-1] for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    is_layer = layer in {family(model.name).torch_name(model.name, path) for path in paths}
    kind = "a layer of this model, but no convolution" if is_layer else "no layer of this model"
    near = difflib.get_close_matches(layer, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the last is {names[-1]};"
    raise UserError(f"--layer={layer} is {kind}; {hint} --layer=? lists the convolutions")


def activations(model: Model, images: Array, layer: str) -> jax.Array:
    """Return the output f[B, h, w, K] of the convolution `layer`, before any norm or ReLU.

    Args:
      images: f[B, H, W, 3], normalized as the model expects.
    Raises UserError if the model has no such layer.
    """
    check_layer(model, layer)
    return _activations(*nnx.split(model), images, layer=layer)


def first_kernel(model: Model) -> jax.Array:
    """Return the filters f32[kh, kw, 3, K] of the first convolution, standardized if it is."""
    conv = submodule(model, next(iter(_paths(model).values())))
    kernel = conv.kernel[...]
    return standardize(kernel) if isinstance(conv, StandardizedConv) else kernel


class Tap(nnx.Module):
    """A convolution followed by a function."""

    def __init__(self, conv: nnx.Conv, change: Callable[[jax.Array], jax.Array]):
        self.conv, self.change = conv, change

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.change(self.conv(x))


def add_tap(model: Model, layer: str, change: Callable[[jax.Array], jax.Array]) -> Model:
    """Return a copy of the model that applies `change` to the output of a convolution.

    The copy shares the model's arrays.
    """
    copy, path = nnx.merge(*nnx.split(model)), _paths(model)[layer]
    parent, tap = submodule(copy, path[:-1]), Tap(submodule(copy, path), change)
    if isinstance(parent, nnx.List | nnx.Dict):
        parent[path[-1]] = tap
    else:
        setattr(parent, path[-1], tap)
    return copy


@jax.jit(static_argnames=("graph", "layer"))
def _activations(graph: nnx.GraphDef, state: nnx.State, images: jax.Array, layer: str) -> jax.Array:
    seen = []

    def record(output: jax.Array) -> jax.Array:
        seen.append(output)
        return output

    fold_batch_norm(add_tap(nnx.merge(graph, state), layer, record))(images, train=False)
    return seen[0]


def _paths(model: Model) -> dict[str, Path]:
    """Return {name: path} of the convolutions, from input to output."""
    own = family(model.name)
    paths = [path for path, module in nnx.iter_modules(model) if isinstance(module, nnx.Conv)]

    def position(path: Path) -> tuple[int, Path]:
        inside = [any(path[: len(place)] == place for place in group) for group in own.groups]
        return inside.index(True), path

    ordered = sorted(paths, key=position)
    return {own.torch_name(model.name, path): path for path in ordered if not own.in_heads(path)}


@nnx.jit(static_argnames="layer")
def grad_cam(model: Model, images: jax.Array, labels: Array, layer: str) -> jax.Array:
    """Return Grad-CAM maps f32[B, H, W] in [0, 1] (Selvaraju et al. 2017, arXiv:1610.02391).

    As in equations 1 and 2, each channel of the layer is weighted by the spatial mean of the
    gradient of the class's logit. The weighted sum is rectified, resized bilinearly to the image
    and divided by its maximum. A map without positive values is 0.

    Args:
      layer: one of `conv_layers`; its output before norm and ReLU is used.

    Raises UserError if the model has no such layer.
    """
    outputs, gradients = outputs_and_gradients(model, images, labels, layer)
    weights = gradients.mean((1, 2), keepdims=True)
    maps = jax.nn.relu((weights * outputs).sum(-1))
    maps = jax.image.resize(maps, images.shape[:3], "bilinear")
    largest = maps.max((1, 2), keepdims=True)
    return maps / jnp.where(largest > 0, largest, 1)


@nnx.jit(static_argnames="layer")
def outputs_and_gradients(
    model: Model, images: jax.Array, labels: Array, layer: str
) -> tuple[jax.Array, jax.Array]:
    """Return (A, dy/dA), both f32[B, h, w, K], for a convolution's output A and the logit y.

    Arguments and errors are those of `grad_cam`.
    """
    output = jax.eval_shape(lambda x: activations(model, x, layer), images)

    def sum_logits(added: jax.Array) -> tuple[jax.Array, jax.Array]:
        seen = []

        def change(value: jax.Array) -> jax.Array:
            seen.append(value)
            return value + added

        logits = fold_batch_norm(add_tap(model, layer, change))(images, train=False)
        return _select(logits, labels).sum(), seen[0]

    # d/d(output) equals d/d(added) at added = 0. Images do not affect each other's logits.
    zeros = jnp.zeros(output.shape, output.dtype)
    gradients, outputs = jax.grad(sum_logits, has_aux=True)(zeros)
    return outputs.astype(jnp.float32), gradients.astype(jnp.float32)


@nnx.jit
def guided_backpropagation(model: Model, images: jax.Array, labels: Array) -> jax.Array:
    """Return the guided gradient f32[B, H, W, 3] of the class's logit with respect to the pixels.

    Each ReLU passes back only positive gradients, and only where its input was positive
    (Springenberg et al. 2015, arXiv:1412.6806, section 3.4). Without ReLUs, as in a transformer,
    this is the plain gradient.
    """

    folded = fold_batch_norm(model)

    def sum_logits(images: jax.Array) -> jax.Array:
        return _select(folded(images, train=False), labels).sum()

    # The ReLUs are replaced in the traced computation, so models need no hooks.
    traced = jax.make_jaxpr(sum_logits)(images)
    guided = jaxpr_as_fun(traced.replace(jaxpr=_with_guided_relus(traced.jaxpr)))
    return jax.grad(lambda x: guided(x)[0])(jnp.asarray(images)).astype(jnp.float32)


@jax.custom_vjp
def _guided_relu(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0)


def _backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(x > 0, jnp.maximum(gradient, 0), 0),)


_guided_relu.defvjp(lambda x: (_guided_relu(x), x), _backward)


def _with_guided_relus(jaxpr: Jaxpr) -> Jaxpr:
    """Return the jaxpr with each ReLU replaced by a guided one, also in called functions."""
    equations = []
    for equation in jaxpr.eqns:
        inner = _called_jaxpr(equation)
        if _is_relu(equation):
            like = jax.make_jaxpr(_guided_relu)(equation.invars[0].aval).eqns[0]
            equation = like.replace(invars=equation.invars, outvars=equation.outvars)
        elif inner is not None:
            changed = inner.replace(jaxpr=_with_guided_relus(inner.jaxpr))
            equation = equation.replace(params={**equation.params, "jaxpr": changed})
        equations.append(equation)
    return jaxpr.replace(eqns=equations)


def _called_jaxpr(equation: Any) -> ClosedJaxpr | None:
    return equation.params["jaxpr"] if equation.primitive.name in _CALLS else None


def _is_relu(equation: Any) -> bool:
    """Return whether this is jax.nn.relu: a custom derivative rule around max(x, 0)."""
    if equation.primitive.name != "custom_jvp_call":
        return False
    jaxpr = equation.params["call_jaxpr"].jaxpr
    while len(jaxpr.eqns) == 1 and (inner := _called_jaxpr(jaxpr.eqns[0])) is not None:
        jaxpr = inner.jaxpr
    if len(jaxpr.eqns) != 1 or jaxpr.eqns[0].primitive.name != "max":
        return False
    return any(isinstance(x, Literal) and x.val == 0 for x in jaxpr.eqns[0].invars)


def default_square(side: int) -> int:
    """Return the default side of the square: a fifth of the image's side, at least 2 pixels."""
    return max(2, round(side / 5))


def default_stride(square: int) -> int:
    """Return the default distance between squares: a quarter of their side, in pixels."""
    return max(1, square // 4)


def square_starts(side: int, square: int, stride: int) -> np.ndarray:
    """Return where squares start along a side, i64[N]: every `stride` pixels and at the far edge.

    Raises UserError unless 1 <= square <= side and stride >= 1.
    """
    if not 1 <= square <= side or stride < 1:
        raise UserError(
            f"a square of {square} pixels every {stride} does not fit images of {side} pixels; "
            "use 1 <= --square <= the image's side"
        )
    return np.unique([*range(0, side - square + 1, stride), side - square])


@nnx.jit(static_argnames=("square", "stride"))
def occluded_probabilities(
    model: Model, images: jax.Array, labels: Array, *, square: int, stride: int
) -> jax.Array:
    """Return the probability of the class f32[B, R, C] while a square hides part of the image.

    The squares start at the R `square_starts` of H and the C `square_starts` of W. They are 0 after
    normalization, the mean color of the data.

    Raises UserError if the square does not fit the images.
    """
    rows, columns = (square_starts(side, square, stride) for side in images.shape[1:3])
    corners = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)

    def occlude(corner: jax.Array) -> jax.Array:
        gray = jnp.zeros((len(images), square, square, images.shape[-1]), images.dtype)
        hidden = jax.lax.dynamic_update_slice(images, gray, (0, corner[0], corner[1], 0))
        return _probabilities(model, hidden, labels)

    batch = max(1, _OCCLUDED_ROWS // len(images))
    found = jax.lax.map(occlude, jnp.asarray(corners), batch_size=batch)
    return found.T.reshape(len(images), len(rows), len(columns))


def occlusion(
    model: Model, images: jax.Array, labels: Array, *, square: int, stride: int
) -> np.ndarray:
    """Return occlusion maps f32[B, H, W] in [-1, 1] (Zeiler & Fergus 2014, arXiv:1311.2901, 4.2).

    The value of a pixel is the decrease of the class's probability, averaged over the squares that
    hide the pixel. It is negative if hiding the pixel increases the probability, and 0 if no square
    hides it (stride > square).

    Arguments and errors are those of `occluded_probabilities`.
    """
    options = {"square": square, "stride": stride}
    hidden = np.asarray(occluded_probabilities(model, images, labels, **options))
    whole = np.asarray(nnx.jit(_probabilities)(model, images, labels))
    height, width = images.shape[1:3]
    total, count = np.zeros((len(images), height, width)), np.zeros((height, width))
    for i, top in enumerate(square_starts(height, square, stride)):
        for j, left in enumerate(square_starts(width, square, stride)):
            pixels = np.s_[..., top : top + square, left : left + square]
            total[pixels] += (whole - hidden[:, i, j])[:, None, None]
            count[pixels] += 1
    return (total / np.maximum(count, 1)).astype(np.float32)


def _probabilities(model: Model, images: jax.Array, labels: Array) -> jax.Array:
    """Return the probability of each image's class, f32[B]."""
    logits = fold_batch_norm(model)(images, train=False)
    return _select(jax.nn.softmax(logits), labels)


def _select(values: jax.Array, labels: Array) -> jax.Array:
    """Return the entry of each row of f[B, C] at its label, f[B]."""
    return jnp.take_along_axis(values, jnp.asarray(labels)[:, None], axis=1)[:, 0]
