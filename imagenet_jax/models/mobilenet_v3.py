"""MobileNetV3 (Howard et al. 2019, arXiv:1905.02244), small and large.

Semantics, initial weights and module names follow torchvision.models.mobilenetv3; arrays are NHWC.
Models named timm_* and tf_* are timm's: they have its module names, and a 1x1 convolution as the
hidden layer of the classifier. timm_* have timm's batch-norm constants; tf_* have TensorFlow's
constants and padding.
"""

import itertools
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
    round_channels,
    timm_block_name,
)
from imagenet_jax.models.layers import (
    BN_GROUP,
    NORM_IMPL,
    ConvNorm,
    SqueezeExcite,
    dropout_field,
    global_average_pool,
)

STEM = 16  # channels after the first convolution
# Tables 1 and 2. Each block: kernel size, expanded channels, output channels, whether it has
# squeeze-and-excitation, whether its activation is hard swish (else ReLU), stride. The last number
# is the units of the hidden layer of the classifier.
SIZES: dict[str, tuple[tuple[tuple[int, ...], ...], int]] = {
    "mobilenet_v3_small": (
        (
            (3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 1, 1, 2),
            (5, 240, 40, 1, 1, 1), (5, 240, 40, 1, 1, 1), (5, 120, 48, 1, 1, 1),
            (5, 144, 48, 1, 1, 1), (5, 288, 96, 1, 1, 2), (5, 576, 96, 1, 1, 1),
            (5, 576, 96, 1, 1, 1),
        ),
        1024,
    ),
    "mobilenet_v3_large": (
        (
            (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2),
            (5, 120, 40, 1, 0, 1), (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2),
            (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1),
            (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1), (5, 672, 160, 1, 1, 2),
            (5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1),
        ),
        1280,
    ),
}  # fmt: skip
# Padding, batch-norm epsilon and momentum.
KINDS = {"": (None, 1e-3, 0.99), "timm_": (None, 1e-5, 0.9), "tf_": ("SAME", 1e-3, 0.99)}
VARIANTS = {
    f"{kind}{name}": (*size, *constants)
    for kind, constants in KINDS.items()
    for name, size in SIZES.items()
}


class MobileNetV3(Model):
    """A 3x3 convolution, inverted residuals, a 1x1 convolution, pool, two linear layers."""

    def __init__(
        self, name: str, *, num_classes: int, width: float, dropout: float, bn_group: int,
        norm_impl: str, dtype: jnp.dtype | None, rngs: nnx.Rngs,
    ):  # fmt: skip
        """`dtype` is the compute dtype of all but the last layer; None: that of the operands."""
        self.name = name
        blocks, hidden, padding, eps, momentum = VARIANTS[name]
        make = partial(
            ConvNorm.make, padding=padding, eps=eps, momentum=momentum, bn_group=bn_group,
            norm_impl=norm_impl, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        gate = partial(SqueezeExcite, gate=nnx.hard_sigmoid, dtype=dtype, rngs=rngs)

        def scale(channels: int) -> int:
            return max(1, round(channels * width))

        inputs = scale(STEM)
        conv, bn = make(3, inputs, 3, 2)
        features: list[Any] = [nnx.Dict(conv=conv, bn=bn)]
        for size, wide, outputs, squeezes, swishes, stride in blocks:
            block = InvertedResidual(
                inputs, scale(wide), scale(outputs), make, size=size, stride=stride,
                activation=nnx.hard_swish if swishes else nnx.relu, gate=gate,
                squeezed=scale(round_channels(wide // 4)) if squeezes else 0,
            )  # fmt: skip
            features.append(block)
            inputs = scale(outputs)
        conv, bn = make(inputs, scale(6 * blocks[-1][2]), 1)
        features.append(nnx.Dict(conv=conv, bn=bn))
        self.features: nnx.List[Any] = nnx.List(features)
        options: dict[str, Any] = {"kernel_init": nnx.initializers.normal(0.01), "rngs": rngs}
        first, last = (conv.out_features, scale(hidden)), (scale(hidden), num_classes)
        self.classifier = nnx.List(
            [
                nnx.Linear(*first, dtype=dtype, **options)
                if name in SIZES
                else nnx.Conv(*first, (1, 1), dtype=dtype, **options),
                nnx.Linear(*last, **options),  # logits are not rounded
            ]
        )
        self.dropout = nnx.Dropout(dropout)

    def activations(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> Activations:
        self.require_pixels(images, 1)
        first, *blocks, last = self.features
        x = ConvNorm(first.conv, first.bn)(images, train=train, activation=nnx.hard_swish)
        yield "stem", x
        strides = [row[-1] for row in VARIANTS[self.name][0]]
        stage = 0
        for i, block in enumerate(blocks):
            x = self.run(block, x, train=train)
            if i == len(blocks) - 1 or strides[i + 1] == 2:
                stage += 1
                yield f"stage{stage}", x
        x = ConvNorm(last.conv, last.bn)(x, train=train, activation=nnx.hard_swish)
        x = global_average_pool(x)
        hidden, head = self.classifier
        x = hidden(x) if isinstance(hidden, nnx.Linear) else hidden(x[:, None, None])[:, 0, 0]
        x = self.dropout(nnx.hard_swish(x), deterministic=not train, rngs=rngs)
        yield "logits", head(x)


def _torch_name(name: str, path: Path) -> str:
    """Return torchvision's name; its indices also count the activation and dropout of the head."""
    if name not in SIZES:
        return _timm_name(name, path)
    if path[0] == "classifier":
        return f"classifier.{3 * path[1]}"
    return ".".join({"conv": "0", "bn": "1"}.get(part, str(part)) for part in path)


def _depths(blocks: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """Return the number of blocks in each of timm's stages, which have equal output channels."""
    return tuple(len(list(stage)) for _, stage in itertools.groupby(row[2] for row in blocks))


def _timm_name(name: str, path: Path) -> str:
    """Return timm's name; the last convolution counts as a stage."""
    if path[0] == "classifier":
        return ("conv_head", "classifier")[path[1]]
    _, index, *place, part = path
    depths = (*_depths(VARIANTS[name][0]), 1)
    if index == 0:
        return {"conv": "conv_stem", "bn": "bn1"}[part]
    stage, block = locate_block(index - 1, depths)
    if not place:
        return f"blocks.{stage}.{block}.{'conv' if part == 'conv' else 'bn1'}"
    return timm_block_name(stage, block, place[1], part, expands=index > 1)


def identify(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the MobileNetV3 models that fit a state dict: see Family.

    timm_* and tf_* have the same keys and shapes.
    """
    if "conv_stem.weight" in arrays and "conv_head.bias" in arrays:
        width = count_outputs(arrays, "conv_stem.weight") / STEM
        depths = count_blocks(arrays, TIMM_BLOCK)
        return [
            {"name": name, "width": width}
            for name, (blocks, *_) in VARIANTS.items()
            if name not in SIZES and depths == (*_depths(blocks), 1)
        ]
    if "features.1.block.0.0.weight" not in arrays:
        return []
    width = count_outputs(arrays, "features.0.0.weight") / STEM
    return [
        {"name": name, "width": width}
        for name, (blocks, _) in SIZES.items()
        if f"features.{len(blocks) + 1}.0.weight" in arrays
    ]


# First index in `features` of each layer group: the stem, then the blocks of each resolution of the
# large network.
_STARTS = (0, 1, 2, 4, 7, 17)

FAMILY = Family(
    model=MobileNetV3,
    variants=tuple(VARIANTS),
    fields={
        "dropout": dropout_field(0.2),
        "bn_group": BN_GROUP,
        "norm_impl": NORM_IMPL,
    },
    groups=(
        *(
            tuple(("features", i) for i in range(start, stop))
            for start, stop in zip(_STARTS, _STARTS[1:], strict=False)
        ),
        (("classifier", 0),),
        (("classifier", 1),),
    ),
    first="features.0.0",
    identify=identify,
    torch_name=_torch_name,
)
