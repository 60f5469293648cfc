"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381).

Semantics, initial weights and module names follow torchvision.models.mobilenetv2; arrays are NHWC.
The names of timm's model are read too.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.models.base import Activations, Family, Model, Path, count_blocks, count_outputs
from imagenet_jax.models.inverted_residual import (
    TIMM_BLOCK,
    InvertedResidual,
    locate_block,
    timm_block_name,
    timm_end_name,
)
from imagenet_jax.models.layers import (
    BN_GROUP,
    NORM_IMPL,
    ConvNorm,
    dropout_field,
    global_average_pool,
)

STEM, LAST = 32, 1280  # channels after the first and the last convolution
# Expansion, output channels, blocks and stride of the first block of each stage (table 2).
STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip
BLOCKS = sum(blocks for _, _, blocks, _ in STAGES)


class MobileNetV2(Model):
    """A 3x3 convolution, inverted residuals, a 1x1 convolution, pool and linear classifier."""

    def __init__(
        self, name: str, *, num_classes: int, width: float, dropout: float, bn_group: int,
        norm_impl: str, dtype: jnp.dtype | None, rngs: nnx.Rngs,
    ):  # fmt: skip
        """`dtype` is the compute dtype of convolutions; None: that of images and parameters."""
        self.name = name
        make = partial(
            ConvNorm.make, bn_group=bn_group, norm_impl=norm_impl, dtype=dtype, rngs=rngs
        )
        inputs = round(STEM * width)
        conv, bn = make(3, inputs, 3, 2)
        features: list[Any] = [nnx.Dict(conv=conv, bn=bn)]
        for expansion, channels, blocks, stride in STAGES:
            for i in range(blocks):
                outputs = round(channels * width)
                features.append(
                    InvertedResidual(
                        inputs, inputs * expansion, outputs, make, stride=1 if i else stride
                    )
                )
                inputs = outputs
        conv, bn = make(inputs, round(LAST * width), 1)
        features.append(nnx.Dict(conv=conv, bn=bn))
        self.features: nnx.List[Any] = nnx.List(features)
        self.dropout = nnx.Dropout(dropout)
        init = nnx.initializers.normal(0.01)
        self.classifier = nnx.Linear(conv.out_features, num_classes, kernel_init=init, rngs=rngs)

    def activations(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> Activations:
        self.require_pixels(images, 1)
        first, *rest, last = self.features
        x = ConvNorm(first.conv, first.bn)(images, train=train, activation=nnx.relu6)
        yield "stem", x
        blocks = iter(rest)
        for i, (_, _, count, _) in enumerate(STAGES):
            for _ in range(count):
                x = self.run(next(blocks), x, train=train)
            yield f"stage{i + 1}", x
        x = ConvNorm(last.conv, last.bn)(x, train=train, activation=nnx.relu6)
        x = global_average_pool(x)
        x = self.dropout(x, deterministic=not train, rngs=rngs)
        yield "logits", self.classifier(x)


def _torch_name(name: str, path: Path) -> str:
    """Return torchvision's name.

    The last convolution and norm of a block are numbered on their own, others within a pair.
    """
    if path[0] == "classifier":
        return "classifier.1"
    _, index, *place = path
    if len(place) == 1:
        return f"features.{index}.{int(place[0] == 'bn')}"
    _, layer, kind = place
    last = 1 if index == 1 else 2  # the first block does not expand
    pair = f"{layer}.{int(kind == 'bn')}" if layer < last else f"{layer + (kind == 'bn')}"
    return f"features.{index}.conv.{pair}"


def _timm_name(name: str, path: Path) -> str:
    if path[0] == "classifier":
        return "classifier"
    _, index, *place, part = path
    if not place:
        return timm_end_name(index, part)
    stage, block = locate_block(index - 1, [blocks for _, _, blocks, _ in STAGES])
    return timm_block_name(stage, block, place[1], part, expands=index > 1)


def identify(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the MobileNetV2 models that fit a state dict: see Family."""
    if "conv_stem.weight" in arrays:
        depths = tuple(blocks for _, _, blocks, _ in STAGES)
        known = count_blocks(arrays, TIMM_BLOCK) == depths and "conv_head.weight" in arrays
        first = "conv_stem.weight"
    else:
        known = {"features.1.conv.0.0.weight", f"features.{BLOCKS + 1}.0.weight"} <= arrays.keys()
        first = "features.0.0.weight"
    return [{"name": "mobilenet_v2", "width": count_outputs(arrays, first) / STEM}] * known


def _groups() -> tuple[tuple[Path, ...], ...]:
    """Return the layer groups: stem, stages, last convolution, classifier."""
    stages, first = [], 1
    for _, _, blocks, _ in STAGES:
        stages.append(tuple(("features", first + i) for i in range(blocks)))
        first += blocks
    return ((("features", 0),), *stages, (("features", first),), (("classifier",),))


FAMILY = Family(
    model=MobileNetV2,
    variants=("mobilenet_v2",),
    fields={
        "dropout": dropout_field(0.2),
        "bn_group": BN_GROUP,
        "norm_impl": NORM_IMPL,
    },
    groups=_groups(),
    first="features.0.0",
    identify=identify,
    torch_name=_torch_name,
    timm_name=_timm_name,
)
