"""DenseNet (Huang et al. 2016, arXiv:1608.06993), with bottlenecks and compression (DenseNet-BC).

Semantics, initial weights and module names follow torchvision.models.densenet; arrays are NHWC.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.models.base import Activations, Family, Model, count_blocks, count_outputs
from imagenet_jax.models.layers import BN_GROUP, ConvNorm, global_average_pool
from imagenet_jax.models.norms import BatchNorm
from imagenet_jax.models.windows import max_pool

MIN_SIDE = 29  # pixels; smaller images leave nothing for the last pool
BOTTLENECK = 4  # channels between the two convolutions of a layer, as a multiple of the growth


class Variant(NamedTuple):
    """Channels that each layer adds, channels of the stem, layers in each of the four blocks."""

    growth: int
    stem: int
    depths: tuple[int, ...]


VARIANTS = {
    "densenet121": Variant(32, 64, (6, 12, 24, 16)),
    "densenet169": Variant(32, 64, (6, 12, 32, 32)),
    "densenet201": Variant(32, 64, (6, 12, 48, 32)),
    "densenet161": Variant(48, 96, (6, 12, 36, 24)),
}


class DenseLayer(nnx.Module):
    """Norm, ReLU, 1x1; norm, ReLU, 3x3. Reads the concatenation of all features before it."""

    def __init__(self, inputs: int, growth: int, make: Callable[..., ConvNorm], bn_group: int):
        self.norm1 = BatchNorm(inputs, images_per_group=bn_group)
        self.conv1, self.norm2 = make(inputs, BOTTLENECK * growth, 1)
        self.conv2, _ = make(BOTTLENECK * growth, growth, 3, norm=False)

    def __call__(self, features: tuple[jax.Array, ...], *, train: bool) -> jax.Array:
        """Tuple of f[B, H, W, *] -> f[B, H, W, growth], the new features."""
        x = nnx.relu(self.norm1(jnp.concatenate(features, -1), train=train))
        return self.conv2(ConvNorm(self.conv1, self.norm2)(x, train=train))


class Transition(nnx.Module):
    """Norm, ReLU, 1x1 convolution to half the channels, 2x2 average pool."""

    def __init__(self, inputs: int, make: Callable[..., ConvNorm], bn_group: int):
        self.norm = BatchNorm(inputs, images_per_group=bn_group)
        self.conv, _ = make(inputs, inputs // 2, 1, norm=False)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """f[B, H, W, I] -> f[B, H / 2, W / 2, I / 2]."""
        x = self.conv(nnx.relu(self.norm(x, train=train)))
        return nnx.avg_pool(x, (2, 2), strides=(2, 2))


class DenseNet(Model):
    """Stem, four dense blocks with transitions between, pool and linear classifier."""

    def __init__(
        self, name: str, *, num_classes: int, width: float, bn_group: int, dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        """`dtype` is the compute dtype of convolutions; None: that of images and parameters."""
        self.name = name
        init = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
        make = partial(ConvNorm.make, bn_group=bn_group, kernel_init=init, dtype=dtype, rngs=rngs)
        growth, stem, depths = VARIANTS[name]
        growth, channels = round(growth * width), round(stem * width)
        conv0, norm0 = make(3, channels, 7, 2)
        features: dict[str, Any] = {"conv0": conv0, "norm0": norm0}
        for i, depth in enumerate(depths, 1):
            features[f"denseblock{i}"] = nnx.Dict(
                {
                    f"denselayer{j + 1}": DenseLayer(channels + j * growth, growth, make, bn_group)
                    for j in range(depth)
                }
            )
            channels += depth * growth
            if i < len(depths):
                features[f"transition{i}"] = Transition(channels, make, bn_group)
                channels //= 2
        features["norm5"] = BatchNorm(channels, images_per_group=bn_group)
        self.features: nnx.Dict[Any] = nnx.Dict(features)
        uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.classifier = nnx.Linear(channels, num_classes, kernel_init=uniform, rngs=rngs)

    def activations(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> Activations:
        self.require_pixels(images, MIN_SIDE)
        parts, depths = self.features, VARIANTS[self.name].depths
        pool = partial(max_pool, window=3, padding=1)
        x = ConvNorm(parts.conv0, parts.norm0)(images, train=train, max_pool=pool)
        yield "stem", x
        for i, depth in enumerate(depths, 1):
            # Layers read a tuple and concatenate it themselves, so that remat "blocks" stores each
            # feature once and memory is linear in depth (Pleiss et al. 2017, arXiv:1707.06990).
            found: tuple[jax.Array, ...] = (x,)
            for j in range(depth):
                layer = parts[f"denseblock{i}"][f"denselayer{j + 1}"]
                found += (self.run(layer, found, train=train),)
            x = jnp.concatenate(found, -1)
            if i == len(depths):
                x = nnx.relu(parts.norm5(x, train=train))
            yield f"denseblock{i}", x
            if i < len(depths):
                x = self.run(parts[f"transition{i}"], x, train=train)
        x = global_average_pool(x)
        yield "logits", self.classifier(x)


def identify(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the DenseNet models that fit a state dict: see Family."""
    depths = count_blocks(arrays, r"features\.denseblock(\d+)\.denselayer(\d+)\.")
    channels = count_outputs(arrays, "features.conv0.weight")
    return [
        {"name": name, "width": channels / variant.stem}
        for name, variant in VARIANTS.items()
        if variant.depths == depths and channels
    ]


FAMILY = Family(
    model=DenseNet,
    variants=tuple(VARIANTS),
    fields={"bn_group": BN_GROUP},
    groups=(
        (("features", "conv0"), ("features", "norm0")),
        *((("features", f"denseblock{i}"), ("features", f"transition{i}")) for i in (1, 2, 3)),
        (("features", "denseblock4"), ("features", "norm5")),
        (("classifier",),),
    ),
    first="features.conv0",
    identify=identify,
)
