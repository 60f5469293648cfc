"""Convolution layers by torchvision's names, and what a layer computes on an image.

A model is never changed: its modules are rebuilt around the same arrays, and there a `Tap` takes
the place of a convolution.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from imagenet_jax.errors import UserError
from imagenet_jax.models import bit, resnet, vgg
from imagenet_jax.models.weight_standardization import StandardizedConv, standardize
from imagenet_jax.weights import torch_names

Model = resnet.ResNet | vgg.VGG | bit.BiT
Array = jax.Array | np.ndarray
_Path = tuple[Any, ...]  # of a module in its model
_FAMILIES = {resnet.ResNet: resnet, vgg.VGG: vgg, bit.BiT: bit}


def conv_layers(model: Model) -> tuple[str, ...]:
    """The name of every convolution from input to output: "conv1", "layer1.0.conv1", ...

    Names are those of torchvision's parameters without ".weight" (timm's for BiT). A classifier
    written as a convolution is none.
    """
    return tuple(_paths(model))


def check(model: Model, layer: str) -> None:
    """UserError with the nearest name, unless `layer` is a convolution of the model."""
    names = conv_layers(model)
    if layer in names:
        return
    kind = "a layer of this model, but no convolution"
    if layer not in _other_layers(model):
        kind = "no layer of this model"
    near = difflib.get_close_matches(layer, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the last is {names[-1]};"
    raise UserError(f"--layer={layer} is {kind}; {hint} --layer=? lists the convolutions")


def activations(model: Model, images: Array, layer: str) -> jax.Array:
    """f[B, h, w, K]: what the convolution `layer` puts out, before any norm or ReLU.

    Args:
      images: f[B, H, W, 3], normalised as for the model.
    Raises UserError for a layer that the model does not have.
    """
    check(model, layer)
    return _activations(*nnx.split(model), images, layer=layer)


def first_kernel(model: Model) -> jax.Array:
    """f32[kh, kw, 3, K]: the filters that the image meets, standardised where the model does so."""
    conv = _at(model, next(iter(_paths(model).values())))
    kernel = conv.kernel[...]
    return standardize(kernel) if isinstance(conv, StandardizedConv) else kernel


class Tap(nnx.Module):
    """A convolution whose output goes through a function on its way to the next layer."""

    def __init__(self, conv: nnx.Conv, change: Callable[[jax.Array], jax.Array]):
        self.conv, self.change = conv, change

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.change(self.conv(x))


def tapped(model: Model, changes: Mapping[str, Callable[[jax.Array], jax.Array]]) -> Model:
    """The model of the same arrays where each named convolution's output is changed: f(output)."""
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


def _paths(model: Model) -> dict[str, _Path]:
    """Where each convolution lies, by its name, from input to output."""
    family = _FAMILIES[type(model)]
    paths = [path for path, module in nnx.iter_modules(model) if isinstance(module, nnx.Conv)]

    def position(path: _Path) -> tuple[int, _Path]:
        inside = [any(path[: len(place)] == place for place in group) for group in family.GROUPS]
        return inside.index(True), path

    return {_name(model, path): path for path in sorted(paths, key=position) if path != family.HEAD}


def _other_layers(model: Model) -> set[str]:
    """The names of norms, linear layers and all else that holds parameters."""
    leaves = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {_name(model, path[:-1]) for path, _ in leaves} - set(conv_layers(model))


def _name(model: Model, path: _Path) -> str:
    config = {"name": _vgg_name(model) if isinstance(model, vgg.VGG) else ""}
    return torch_names.torch_key(config, (*path, "kernel")).removesuffix(".weight")


def _vgg_name(model: vgg.VGG) -> str:
    depths = tuple(len(stage) for stage in model.features)
    variant = (depths, model.features[0][0].bn is not None)
    return next(name for name, known in vgg.VARIANTS.items() if known == variant)


def _at(module: Any, path: _Path) -> Any:
    for key in path:
        indexed = isinstance(module, nnx.List | nnx.Dict)
        module = module[key] if indexed else getattr(module, key)
    return module
