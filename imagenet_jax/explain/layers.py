"""Convolutions of a model by torchvision's names, and their outputs.

A model is never changed: to read or change the output of a convolution, a `Tap` replaces it in a
copy that shares the model's arrays.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from imagenet_jax.errors import UserError
from imagenet_jax.models import family
from imagenet_jax.models.base import Model, Path
from imagenet_jax.models.layers import StandardizedConv, standardize

Array = jax.Array | np.ndarray


def conv_layers(model: Model) -> tuple[str, ...]:
    """Return the name of each convolution from input to output: "conv1", "layer1.0.conv1", ...

    These are torchvision's module names (timm's for BiT). A classifier that is a 1x1 convolution is
    left out.
    """
    return tuple(_paths(model))


def check(model: Model, layer: str) -> None:
    """Raise UserError, with the nearest name, unless `layer` is a convolution of the model."""
    names = conv_layers(model)
    if layer in names:
        return
    is_layer = layer in _other_layers(model)
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
    check(model, layer)
    return _activations(*nnx.split(model), images, layer=layer)


def first_kernel(model: Model) -> jax.Array:
    """Return the filters f32[kh, kw, 3, K] of the first convolution, standardized if it does so."""
    conv = _at(model, next(iter(_paths(model).values())))
    kernel = conv.kernel[...]
    return standardize(kernel) if isinstance(conv, StandardizedConv) else kernel


class Tap(nnx.Module):
    """A convolution followed by a function."""

    def __init__(self, conv: nnx.Conv, change: Callable[[jax.Array], jax.Array]):
        self.conv, self.change = conv, change

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.change(self.conv(x))


def tapped(model: Model, changes: Mapping[str, Callable[[jax.Array], jax.Array]]) -> Model:
    """Return a copy of the model in which each named convolution's output goes through a function.

    The copy shares the model's arrays.
    """
    paths = _paths(model)
    copy = nnx.merge(*nnx.split(model))
    for layer, change in changes.items():
        *parents, last = paths[layer]
        parent, tap = _at(copy, tuple(parents)), Tap(_at(copy, paths[layer]), change)
        if isinstance(parent, nnx.List | nnx.Dict):
            parent[last] = tap
        else:
            setattr(parent, last, tap)
    return copy


@jax.jit(static_argnames=("graph", "layer"))
def _activations(graph: nnx.GraphDef, state: nnx.State, images: jax.Array, layer: str) -> jax.Array:
    seen = []

    def record(output: jax.Array) -> jax.Array:
        seen.append(output)
        return output

    tapped(nnx.merge(graph, state), {layer: record})(images, train=False)
    return seen[0]


def _paths(model: Model) -> dict[str, Path]:
    """Return where each convolution is, by its name, from input to output."""
    own = family(model.name)
    paths = [path for path, module in nnx.iter_modules(model) if isinstance(module, nnx.Conv)]

    def position(path: Path) -> tuple[int, Path]:
        inside = [any(path[: len(place)] == place for place in group) for group in own.groups]
        return inside.index(True), path

    ordered = sorted(paths, key=position)
    return {own.torch_name(model.name, path): path for path in ordered if path != own.head}


def _other_layers(model: Model) -> set[str]:
    """Return the names of norms, linear layers and everything else that holds parameters."""
    leaves = nnx.to_flat_state(nnx.state(model, nnx.Param))
    names = {family(model.name).torch_name(model.name, path[:-1]) for path, _ in leaves}
    return names - set(conv_layers(model))


def _at(module: Any, path: Path) -> Any:
    for key in path:
        indexed = isinstance(module, nnx.List | nnx.Dict)
        module = module[key] if indexed else getattr(module, key)
    return module
