"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381).

Semantics, initial weights and module names of torchvision.models.mobilenetv2, in NHWC. The names of
timm's model are read too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.config.fields import Field
from imagenet_jax.models.base import (
    Family,
    Model,
    Path,
    count_blocks,
    count_outputs,
    require_pixels,
)  # fmt: skip
from imagenet_jax.models.layers import (
    BN_GROUP,
    NORM_IMPL,
    ConvNorm,
    SqueezeExcite,
    drop_branch,
    global_average_pool,
)

STEM, LAST = 32, 1280  # channels after the first and the last convolution
# Expansion, output channels, blocks and stride of the first block of each stage (table 2).
STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip
BLOCKS = sum(blocks for _, _, blocks, _ in STAGES)
TIMM_BLOCK = r"blocks\.(\d+)\.(\d+)\."  # stage and block in timm's names


class InvertedResidual(nnx.Module):
    """1x1 convolution to `wide` channels, depthwise convolution, linear 1x1, and a shortcut.

    With `squeezed`, a squeeze-and-excitation of that many hidden channels follows the depthwise
    convolution (Howard et al. 2019, arXiv:1905.02244). If `fused`, one dense convolution replaces
    the first two, and the third too unless the block is wide (Tan & Le 2021, arXiv:2104.00298).
    `rate` is the probability of dropping the branch of an image in training.
    """

    def __init__(
        self,
        inputs: int,
        wide: int,
        outputs: int,
        make: Callable[..., ConvNorm],
        *,
        size: int = 3,
        stride: int = 1,
        activation: Callable[[jax.Array], jax.Array] = nnx.relu6,
        gate: Callable[..., SqueezeExcite] = SqueezeExcite,
        squeezed: int = 0,
        fused: bool = False,
        rate: float = 0.0,
    ):
        """`make` makes convolutions, `gate` the squeeze-and-excitation."""
        layers: list[Any] = []
        if fused:
            layers.append(make(inputs, wide if wide != inputs else outputs, size, stride))
        else:
            layers += [make(inputs, wide, 1)] if wide != inputs else []
            layers.append(make(wide, wide, size, stride, groups=wide))
        if squeezed:
            layers.append(gate(wide, squeezed))
        if wide != inputs or not fused:
            layers.append(make(wide, outputs, 1))
        self.block: nnx.List[Any] = nnx.List(
            [
                nnx.Dict(conv=layer.conv, bn=layer.norm) if isinstance(layer, ConvNorm) else layer
                for layer in layers
            ]
        )
        self.activation, self.rate = activation, rate
        self.has_shortcut = stride == 1 and inputs == outputs

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """f[B, H, W, I] -> f[B, h, w, O]."""
        y, last = x, len(self.block) - 1
        for i, layer in enumerate(self.block):
            if isinstance(layer, SqueezeExcite):
                y = layer(y)
            else:
                activation = None if 0 < i == last else self.activation
                y = ConvNorm(layer.conv, layer.bn)(y, train=train, activation=activation)
        if not self.has_shortcut:
            return y
        return x + drop_branch(y, self.rate, train=train, rngs=rngs)


class MobileNetV2(Model):
    """A 3x3 convolution, inverted residuals, a 1x1 convolution, pool and linear classifier."""

    def __init__(
        self, name: str, *, num_classes: int, width: float, dropout: float, bn_group: int,
        norm_impl: str, dtype: jnp.dtype | None, rngs: nnx.Rngs,
    ):  # fmt: skip
        """`dtype` is the compute dtype of convolutions; None: that of images and parameters.

        torchvision rounds channels to multiples of 8, which only matters if `width` is not 1.
        """
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

    def activations(
        self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None
    ) -> Iterator[tuple[str, jax.Array]]:
        require_pixels(images, 1, "MobileNetV2")
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
    """torchvision's blocks end with a bare convolution and norm; others are parts of a pair."""
    if path[0] == "classifier":
        return "classifier.1"
    _, index, *place = path
    if len(place) == 1:
        return f"features.{index}.{int(place[0] == 'bn')}"
    _, layer, kind = place
    last = 1 if index == 1 else 2  # the first block does not expand
    pair = f"{layer}.{int(kind == 'bn')}" if layer < last else f"{layer + (kind == 'bn')}"
    return f"features.{index}.conv.{pair}"


def timm_block_name(stage: int, block: int, layer: int, part: str, *, expands: bool) -> str:
    """Return timm's name of `part` of a layer of an inverted residual.

    `part` is "conv" or "bn", or "fc1" or "fc2" of the squeeze-and-excitation. `expands` is whether
    the block begins with a 1x1 convolution.
    """
    if part in ("fc1", "fc2"):
        return f"blocks.{stage}.{block}.se.conv_{'reduce' if part == 'fc1' else 'expand'}"
    names = ("conv_pw", "conv_dw", "conv_pwl") if expands else ("conv_dw", "conv_pw")
    layer = min(layer, len(names) - 1)  # squeeze-and-excitation may come before the last
    return f"blocks.{stage}.{block}.{names[layer] if part == 'conv' else f'bn{layer + 1}'}"


def _timm_name(name: str, path: Path) -> str:
    if path[0] == "classifier":
        return "classifier"
    _, index, *place, part = path
    if not place:
        names = ("conv_stem", "bn1") if index == 0 else ("conv_head", "bn2")
        return names[part == "bn"]
    stage, block = locate_block(index - 1, [blocks for _, _, blocks, _ in STAGES])
    return timm_block_name(stage, block, place[1], part, expands=index > 1)


def locate_block(index: int, counts: Sequence[int]) -> tuple[int, int]:
    """Return the stage of block number `index` and its number there; `counts` is of each stage."""
    for stage, count in enumerate(counts):
        if index < count:
            return stage, index
        index -= count
    raise IndexError(index)


def identify(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the MobileNetV2 of a state dict: see Family."""
    if "conv_stem.weight" in arrays:
        depths = tuple(blocks for _, _, blocks, _ in STAGES)
        known = count_blocks(arrays, TIMM_BLOCK) == depths and "conv_head.weight" in arrays
        first = "conv_stem.weight"
    else:
        known = {"features.1.conv.0.0.weight", f"features.{BLOCKS + 1}.0.weight"} <= arrays.keys()
        first = "features.0.0.weight"
    return [{"name": "mobilenet_v2", "width": count_outputs(arrays, first) / STEM}] * known


def _groups() -> tuple[tuple[Path, ...], ...]:
    """Return the stem, the stages, the last convolution and the classifier."""
    stages, first = [], 1
    for _, _, blocks, _ in STAGES:
        stages.append(tuple(("features", first + i) for i in range(blocks)))
        first += blocks
    return ((("features", 0),), *stages, (("features", first),), (("classifier",),))


FAMILY = Family(
    model=MobileNetV2,
    variants=("mobilenet_v2",),
    fields={
        "dropout": Field(0.2, "Dropout rate before the last layer", at_least=0, below=1),
        "bn_group": BN_GROUP,
        "norm_impl": NORM_IMPL,
    },
    groups=_groups(),
    first="features.0.0",
    identify=identify,
    torch_name=_torch_name,
    timm_name=_timm_name,
)
