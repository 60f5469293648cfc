"""Inception v3 (Szegedy et al. 2015, arXiv:1512.00567) with an auxiliary head.

Semantics, initial weights and module names follow torchvision.models.inception_v3; arrays are NHWC.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.config.fields import Field
from imagenet_jax.models.base import Activations, Family, Model, count_outputs
from imagenet_jax.models.googlenet import ConvBlock, scaled
from imagenet_jax.models.layers import BN_GROUP, dropout_field, global_average_pool, uniform_linear
from imagenet_jax.models.windows import max_pool

# Output channels, kernel size, stride and padding of the first convolutions.
STEM = {
    "Conv2d_1a_3x3": (32, 3, 2, 0),
    "Conv2d_2a_3x3": (32, 3, 1, 0),
    "Conv2d_2b_3x3": (64, 3, 1, 1),
    "Conv2d_3b_1x1": (80, 1, 1, 0),
    "Conv2d_4a_3x3": (192, 3, 1, 0),
}
POOL_AFTER = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")  # where a 3x3 max-pool of stride 2 follows
CROSS = "1x3 and 3x1 in parallel"
HALVE = "3x3 of stride 2"

Branches = dict[str, list[tuple[int, Any]]]


def _block_a(pooled: int) -> Branches:
    """Figure 5, with a 5x5 convolution as in the published code."""
    return {
        "branch1x1": [(64, 1)],
        "branch5x5": [(48, 1), (64, 5)],
        "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
        "branch_pool": [(pooled, 1)],
    }


def _block_c(c: int) -> Branches:
    """Figure 6."""
    return {
        "branch1x1": [(192, 1)],
        "branch7x7": [(c, 1), (c, (1, 7)), (192, (7, 1))],
        "branch7x7dbl": [(c, 1), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)), (192, (1, 7))],
        "branch_pool": [(192, 1)],
    }


# Figure 7.
_BLOCK_E: Branches = {
    "branch1x1": [(320, 1)],
    "branch3x3": [(384, 1), (384, CROSS)],
    "branch3x3dbl": [(448, 1), (384, 3), (384, CROSS)],
    "branch_pool": [(192, 1)],
}
# block -> branch -> output channels and kernel size of each convolution. A block without
# branch_pool has stride 2, and a max-pool as its last branch.
BLOCKS: dict[str, Branches] = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": {"branch3x3": [(384, HALVE)], "branch3x3dbl": [(64, 1), (96, 3), (96, HALVE)]},
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": {
        "branch3x3": [(192, 1), (320, HALVE)],
        "branch7x7x3": [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, HALVE)],
    },
    "Mixed_7b": _BLOCK_E,
    "Mixed_7c": _BLOCK_E,
}
STAGES = ("Mixed_5", "Mixed_6", "Mixed_7")
MIN_SIDE = 75  # pixels; smaller images leave nothing for Mixed_7a
MIN_SIDE_WITH_HEAD = 299  # in training: smaller images leave nothing to the head's 5x5 convolution
# torchvision truncates the normal distribution at 2, which is 20 standard deviations.
INIT = nnx.initializers.normal(0.1)


def _named(branch: str, layers: list[tuple[int, Any]]) -> Iterator[tuple[str, int, Any]]:
    """Yield torch's name, output channels and kernel size of each layer of a branch."""
    for i, (channels, size) in enumerate(layers):
        yield branch if len(layers) == 1 else f"{branch}_{i + 1}", channels, size


class Mixed(nnx.Module):
    """Parallel branches whose outputs are concatenated. `name` is a key of BLOCKS."""

    def __init__(self, name: str, inputs: int, width: float, make: Callable[..., ConvBlock]):
        self.name = name
        self.outputs = inputs if "branch_pool" not in BLOCKS[name] else 0
        for branch, layers in BLOCKS[name].items():
            last = inputs
            for layer, wanted, size in _named(branch, layers):
                channels = scaled(wanted, width)
                if size == CROSS:
                    setattr(self, f"{layer}a", make(last, channels, (1, 3)))
                    setattr(self, f"{layer}b", make(last, channels, (3, 1)))
                    last = 2 * channels
                    continue
                halves = size == HALVE
                conv = (
                    make(last, channels, 3, 2, padding=0) if halves else make(last, channels, size)
                )
                setattr(self, layer, conv)
                last = channels
            self.outputs += last

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """f[B, H, W, I] -> f[B, h, w, outputs]."""
        outputs = []
        for branch, layers in BLOCKS[self.name].items():
            y = x
            if branch == "branch_pool":
                y = nnx.avg_pool(x, (3, 3), padding=((1, 1), (1, 1)))
            for layer, _, size in _named(branch, layers):
                parts = (f"{layer}a", f"{layer}b") if size == CROSS else (layer,)
                y = jnp.concatenate([getattr(self, part)(y, train=train) for part in parts], -1)
            outputs.append(y)
        if "branch_pool" not in BLOCKS[self.name]:
            outputs.append(max_pool(x, 3))
        return jnp.concatenate(outputs, -1)


class Auxiliary(nnx.Module):
    """An auxiliary head, used in training: average pool, 1x1 and 5x5 convolution, linear."""

    def __init__(
        self, inputs: int, num_classes: int, width: float, make: Callable[..., ConvBlock],
        rngs: nnx.Rngs,
    ):  # fmt: skip
        narrow, wide = scaled(128, width), scaled(768, width)
        self.conv0 = make(inputs, narrow, 1)
        self.conv1 = make(narrow, wide, 5, padding=0)
        init = nnx.initializers.normal(0.001)
        self.fc = uniform_linear(wide, num_classes, kernel_init=init, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """f[B, H, W, I] -> logits f32[B, num_classes]."""
        x = self.conv0(nnx.avg_pool(x, (5, 5), strides=(3, 3)), train=train)
        x = self.conv1(x, train=train)
        return self.fc(global_average_pool(x))


class InceptionV3(Model):
    """Five convolutions, eleven blocks of parallel branches, pool, linear classifier."""

    def __init__(
        self, name: str, *, num_classes: int, width: float, aux_weight: float, dropout: float,
        bn_group: int, dtype: jnp.dtype | None, rngs: nnx.Rngs,
    ):  # fmt: skip
        """`dtype` is the compute dtype of all but the last layers; None: that of the operands."""
        self.name, self.aux_weight = name, aux_weight
        make = partial(ConvBlock, bn_group=bn_group, kernel_init=INIT, dtype=dtype, rngs=rngs)
        inputs = 3
        for layer, (channels, size, stride, padding) in STEM.items():
            outputs = scaled(channels, width)
            setattr(self, layer, make(inputs, outputs, size, stride, padding=padding))
            inputs = outputs
        for layer in BLOCKS:
            block = Mixed(layer, inputs, width, make)
            setattr(self, layer, block)
            inputs = block.outputs
            if layer == "Mixed_6e" and aux_weight:
                self.AuxLogits = Auxiliary(inputs, num_classes, width, make, rngs)
        self.dropout = nnx.Dropout(dropout)
        self.fc = uniform_linear(inputs, num_classes, kernel_init=INIT, rngs=rngs)

    def activations(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> Activations:
        has_head = train and self.aux_weight > 0
        if has_head:
            what = "training Inception v3 with its auxiliary head (config.model.aux_weight)"
            self.require_pixels(images, MIN_SIDE_WITH_HEAD, what=what)
        self.require_pixels(images, MIN_SIDE)
        x = images
        for layer in STEM:
            pool = partial(max_pool, window=3) if layer in POOL_AFTER else None
            x = getattr(self, layer)(x, train=train, max_pool=pool)
        yield "stem", x
        for stage in STAGES:
            for layer in _blocks(stage):
                x = self.run(getattr(self, layer), x, train=train)
            yield stage, x
            if stage == "Mixed_6" and has_head:
                yield "aux", self.run(self.AuxLogits, x, train=train)
        x = global_average_pool(x)
        x = self.dropout(x, deterministic=not train, rngs=rngs)
        yield "logits", self.fc(x)


def _blocks(stage: str) -> list[str]:
    return [layer for layer in BLOCKS if layer.startswith(stage)]


def identify(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the Inception v3 models that fit a state dict: see Family."""
    first = "Conv2d_1a_3x3.conv.weight"
    if first not in arrays or "Mixed_5b.branch1x1.conv.weight" not in arrays:
        return []
    found = {"name": "inception_v3", "width": count_outputs(arrays, first) / 32}
    return [found if "AuxLogits.fc.weight" in arrays else {**found, "aux_weight": 0.0}]


FAMILY = Family(
    model=InceptionV3,
    variants=("inception_v3",),
    fields={
        "aux_weight": Field(
            0.4, "Factor of the loss of the auxiliary head; 0: a model without it", at_least=0
        ),
        "dropout": dropout_field(0.5),
        "bn_group": BN_GROUP,
    },
    groups=(
        tuple((layer,) for layer in STEM),
        *(tuple((layer,) for layer in _blocks(stage)) for stage in STAGES),
        (("fc",), ("AuxLogits",)),
    ),
    first="Conv2d_1a_3x3.conv",
    identify=identify,
    auxiliary=(("AuxLogits",),),
)
