"""VGG (Simonyan & Zisserman 2014, arXiv:1409.1556), with and without batch norm.

Semantics and initial weights follow torchvision.models.vgg; arrays are NHWC.
"""

import dataclasses
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.config.fields import Field
from imagenet_jax.models.base import Activations, Family, Model, Path, count_outputs
from imagenet_jax.models.layers import BN_GROUP, ConvNorm, adaptive_average_pool, three_linear
from imagenet_jax.models.windows import max_pool

CHANNELS = (64, 128, 256, 512, 512)  # in each of the five stages
HIDDEN = 4096  # units of each of the two hidden linear layers
POOLED = 7  # side of the feature map that the classifier reads, for every image size

_DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
# name -> (3x3 convolutions in each of the five stages, whether they have batch norm)
VARIANTS: dict[str, tuple[tuple[int, ...], bool]] = {
    name + suffix: (depths, suffix == "_bn")
    for name, depths in _DEPTHS.items()
    for suffix in ("", "_bn")
}
FIELDS = {
    "dropout": Field(
        0.5, "Dropout rate after each of the two hidden linear layers", at_least=0, below=1
    ),
    "bn_group": dataclasses.replace(
        BN_GROUP,
        read_by={"model.name": tuple(name for name, (_, has_bn) in VARIANTS.items() if has_bn)},
    ),
}


class Stage(nnx.List[Any]):
    """3x3 convolutions, then a max-pool."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """f[B, H, W, I] -> f[B, H / 2, W / 2, O]."""
        for i, layer in enumerate(self, 1):
            pool = partial(max_pool, window=2) if i == len(self) else None
            x = ConvNorm(layer.conv, layer.bn)(x, train=train, max_pool=pool)
        return x


class VGG(Model):
    """Five stages of 3x3 convolutions, each with a max-pool at its end, and three linear layers."""

    def __init__(
        self, name: str, *, num_classes: int, width: float, dropout: float, bn_group: int,
        dtype: jnp.dtype | None, rngs: nnx.Rngs,
    ):  # fmt: skip
        """`dtype` is the compute dtype of all but the last layer; None: that of the operands."""
        self.name = name
        depths, has_bn = VARIANTS[name]
        make = partial(
            ConvNorm.make, norm=has_bn, bias=True, bn_group=bn_group, dtype=dtype, rngs=rngs
        )
        stages, inputs = [], 3
        for depth, channels in zip(depths, CHANNELS, strict=True):
            stage: list[Any] = []
            for _ in range(depth):
                conv, bn = make(inputs, round(channels * width), 3)
                stage.append(nnx.Dict(conv=conv, bn=bn))
                inputs = conv.out_features
            stages.append(Stage(stage))
        self.features: nnx.List[Any] = nnx.List(stages)
        hidden = round(HIDDEN * width)
        linear = partial(nnx.Linear, kernel_init=nnx.initializers.normal(0.01), rngs=rngs)
        self.classifier = three_linear(linear, inputs * POOLED**2, hidden, num_classes, dtype)
        self.dropout = nnx.Dropout(dropout)

    def activations(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> Activations:
        self.require_pixels(images, 32)
        x = images
        for i, stage in enumerate(self.features):
            x = self.run(stage, x, train=train)
            yield f"stage{i + 1}", x
        x = adaptive_average_pool(x, POOLED)
        x = x.reshape(x.shape[0], -1)
        for linear in self.classifier[:-1]:
            x = self.dropout(nnx.relu(linear(x)), deterministic=not train, rngs=rngs)
        yield "logits", self.classifier[-1](x)


def _torch_name(name: str, path: Path) -> str:
    """Return torchvision's name, whose index counts ReLU, pooling and dropout layers too."""
    part, *place = path
    if part == "classifier":
        return f"classifier.{3 * place[0]}"
    depths, has_bn = VARIANTS[name]
    stage, layer, kind = place
    before = sum(depths[:stage]) + layer
    return f"features.{before * (3 if has_bn else 2) + stage + (kind == 'bn')}"


def identify(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the VGG models that fit a state dict: see Family."""
    keys = [key for key in arrays if re.fullmatch(r"features\.\d+\.weight", key)]
    convolutions = sum(arrays[key].ndim == 4 for key in keys)
    has_bn = "features.1.running_mean" in arrays
    width = count_outputs(arrays, "features.0.weight") / CHANNELS[0]
    return [
        {"name": name, "width": width}
        for name, (depths, known_bn) in VARIANTS.items()
        if (sum(depths), known_bn) == (convolutions, has_bn) and width
    ]


FAMILY = Family(
    model=VGG,
    variants=tuple(VARIANTS),
    fields=FIELDS,
    groups=(
        *((("features", i),) for i in range(len(CHANNELS))),
        *((("classifier", i),) for i in range(3)),
    ),
    first="features.0",
    identify=identify,
    torch_name=_torch_name,
    flattened={("classifier", 0): POOLED},
)
