"""MobileNetV3 (Howard et al. 2019, arXiv:1905.02244), small and large.

Semantics, initial weights and module names of torchvision.models.mobilenetv3, in NHWC.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.config.fields import Field
from imagenet_jax.models.base import Family, Model, Path, count_outputs, require_pixels
from imagenet_jax.models.layers import (
    BN_GROUP,
    NORM_IMPL,
    ConvNorm,
    SqueezeExcite,
    global_average_pool,
)
from imagenet_jax.models.mobilenet import InvertedResidual

STEM = 16  # channels after the first convolution
EPSILON, MOMENTUM = 1e-3, 0.99  # of batch norm
# Tables 1 and 2: of each block the kernel, expanded channels, output channels, whether it squeezes,
# whether its activation is hard swish (else ReLU), and the stride. Then the width of the hidden
# layer of the classifier.
VARIANTS: dict[str, tuple[tuple[tuple[int, ...], ...], int]] = {
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


def round_channels(channels: float) -> int:
    """Return the multiple of 8 nearest to `channels`, but at least 8 and 0.9 * channels."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class MobileNetV3(Model):
    """A 3x3 convolution, inverted residuals, a 1x1 convolution, pool, two linear layers."""

    def __init__(
        self, name: str, *, num_classes: int, width: float, dropout: float, bn_group: int,
        norm_impl: str, dtype: jnp.dtype | None, rngs: nnx.Rngs,
    ):  # fmt: skip
        """`dtype` is the compute dtype of all but the last layer; None: that of the operands.

        torchvision rounds channels to multiples of 8, which only matters if `width` is not 1.
        """
        self.name = name
        make = partial(
            ConvNorm.make, eps=EPSILON, momentum=MOMENTUM, bn_group=bn_group, norm_impl=norm_impl,
            dtype=dtype, rngs=rngs,
        )  # fmt: skip
        gate = partial(SqueezeExcite, gate=nnx.hard_sigmoid, dtype=dtype, rngs=rngs)

        def scale(channels: int) -> int:
            return max(1, round(channels * width))

        blocks, hidden = VARIANTS[name]
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
        linear = partial(nnx.Linear, kernel_init=nnx.initializers.normal(0.01), rngs=rngs)
        self.classifier = nnx.List(
            [
                linear(conv.out_features, scale(hidden), dtype=dtype),
                linear(scale(hidden), num_classes),  # logits are not rounded
            ]
        )
        self.dropout = nnx.Dropout(dropout)

    def activations(
        self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None
    ) -> Iterator[tuple[str, jax.Array]]:
        require_pixels(images, 1, "MobileNetV3")
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
        x = self.dropout(nnx.hard_swish(hidden(x)), deterministic=not train, rngs=rngs)
        yield "logits", head(x)


def _torch_name(name: str, path: Path) -> str:
    """torchvision numbers the convolution and the norm of a pair, and an activation and dropout."""
    if path[0] == "classifier":
        return f"classifier.{3 * path[1]}"
    return ".".join({"conv": "0", "bn": "1"}.get(part, str(part)) for part in path)


def identify(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the MobileNetV3 of a state dict: see Family."""
    if "features.1.block.0.0.weight" not in arrays:
        return []
    width = count_outputs(arrays, "features.0.0.weight") / STEM
    return [
        {"name": name, "width": width}
        for name, (blocks, _) in VARIANTS.items()
        if f"features.{len(blocks) + 1}.0.weight" in arrays
    ]


# The stem, blocks at each resolution of the large network, the two linear layers.
_ENDS = (0, 1, 2, 4, 7, 17)

FAMILY = Family(
    model=MobileNetV3,
    variants=tuple(VARIANTS),
    fields={
        "dropout": Field(0.2, "Dropout rate before the last layer", at_least=0, below=1),
        "bn_group": BN_GROUP,
        "norm_impl": NORM_IMPL,
    },
    groups=(
        *(
            tuple(("features", i) for i in range(start, stop))
            for start, stop in zip(_ENDS, _ENDS[1:], strict=False)
        ),
        (("classifier", 0),),
        (("classifier", 1),),
    ),
    first="features.0.0",
    identify=identify,
    torch_name=_torch_name,
)
