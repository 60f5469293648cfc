"""EfficientNet (Tan & Le 2019, arXiv:1905.11946), EfficientNetV2 (arXiv:2104.00298) and Lite.

- efficientnet_b0-b7 and efficientnet_v2_*: semantics, initial weights and module names of
  torchvision.
- tf_efficientnet_b0-b7: the authors' own networks, as in Keras, with TensorFlow's padding and
  batch-norm constants. Module names are those of the package efficientnet_pytorch.
- efficientnet_lite0-lite4 (Liu 2020, github.com/tensorflow/tpu, models/official/efficientnet/lite):
  like tf_*, but with ReLU6 and without squeeze-and-excitation. Module names are those of the
  package efficientnet_lite_pytorch.
- timm_efficientnet_lite0: timm's, with torch's padding and batch-norm constants, and timm's names.

Arrays are NHWC. timm's names of B0-B4, tf_efficientnet_* and Lite (tf_efficientnet_lite* in timm)
are read too.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.models.base import Activations, Family, Model, Path, count_blocks
from imagenet_jax.models.inverted_residual import (
    TIMM_BLOCK,
    InvertedResidual,
    round_channels,
    timm_block_name,
    timm_end_name,
)
from imagenet_jax.models.layers import (
    BN_GROUP,
    DROP_PATH,
    NORM_IMPL,
    ConvNorm,
    SqueezeExcite,
    drop_path_rates,
    dropout_field,
    global_average_pool,
)


class Stage(NamedTuple):
    """A row of table 1. `stride` is that of the first block, `channels` are output channels."""

    expansion: int
    size: int
    stride: int
    channels: int
    blocks: int
    fused: bool = False


class Variant(NamedTuple):
    """What distinguishes one EfficientNet.

    Attributes:
      stem, last: channels of the first and the last convolution.
      stages: the stages of blocks between them.
      eps, momentum: of batch norm.
      tensorflow: has TensorFlow's padding and efficientnet_pytorch's module names.
      lite: has ReLU6 and no squeeze-and-excitation.
      timm: has timm's module names.
    """

    stem: int
    stages: tuple[Stage, ...]
    last: int
    eps: float
    momentum: float
    tensorflow: bool = False
    lite: bool = False
    timm: bool = False


# EfficientNet-B0: table 1.
B0 = tuple(
    Stage(*row)
    for row in (
        (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4), (6, 3, 1, 320, 1),
    )
)  # fmt: skip


def _scaled(width: float, depth: float, eps: float, momentum: float) -> Variant:
    """Return B0 with more channels and blocks (section 3.3)."""
    stages = tuple(
        stage._replace(
            channels=round_channels(stage.channels * width),
            blocks=math.ceil(stage.blocks * depth),
        )
        for stage in B0
    )
    return Variant(round_channels(32 * width), stages, 4 * stages[-1].channels, eps, momentum)


def _lite(width: float, depth: float) -> Variant:
    """Return a Lite variant: only the width and the depth of the middle stages are scaled."""
    first, *middle, last = _scaled(width, depth, 1e-3, 0.99).stages
    stages = (first._replace(blocks=1), *middle, last._replace(blocks=1))
    return Variant(32, stages, 1280, 1e-3, 0.99, tensorflow=True, lite=True)


def _v2(*rows: tuple[int, ...]) -> Variant:
    """Return an EfficientNetV2 of rows (expansion, stride, channels, blocks); three are fused."""
    stages = tuple(
        Stage(expansion, 3, stride, channels, blocks, fused=i < 3)
        for i, (expansion, stride, channels, blocks) in enumerate(rows)
    )
    return Variant(stages[0].channels, stages, 1280, 1e-3, 0.9)


# name -> factors on the channels and on the depth of B0
SCALES = {
    "efficientnet_b0": (1.0, 1.0),
    "efficientnet_b1": (1.0, 1.1),
    "efficientnet_b2": (1.1, 1.2),
    "efficientnet_b3": (1.2, 1.4),
    "efficientnet_b4": (1.4, 1.8),
    "efficientnet_b5": (1.6, 2.2),
    "efficientnet_b6": (1.8, 2.6),
    "efficientnet_b7": (2.0, 3.1),
}
# torchvision's B5-B7 have the constants of the TensorFlow networks they were converted from.
VARIANTS = {
    **{
        name: _scaled(*scale, *((1e-3, 0.99) if name[-1] in "567" else (1e-5, 0.9)))
        for name, scale in SCALES.items()
    },
    **{
        f"tf_{name}": _scaled(*scale, 1e-3, 0.99)._replace(tensorflow=True)
        for name, scale in SCALES.items()
    },
    "efficientnet_v2_s": _v2(
        (1, 1, 24, 2), (4, 2, 48, 4), (4, 2, 64, 4), (4, 2, 128, 6), (6, 1, 160, 9),
        (6, 2, 256, 15),
    ),
    "efficientnet_v2_m": _v2(
        (1, 1, 24, 3), (4, 2, 48, 5), (4, 2, 80, 5), (4, 2, 160, 7), (6, 1, 176, 14),
        (6, 2, 304, 18), (6, 1, 512, 5),
    ),
    "efficientnet_v2_l": _v2(
        (1, 1, 32, 4), (4, 2, 64, 7), (4, 2, 96, 7), (4, 2, 192, 10), (6, 1, 224, 19),
        (6, 2, 384, 25), (6, 1, 640, 7),
    ),
    "efficientnet_lite0": _lite(1.0, 1.0),
    "efficientnet_lite1": _lite(1.0, 1.1),
    "efficientnet_lite2": _lite(1.1, 1.2),
    "efficientnet_lite3": _lite(1.2, 1.4),
    "efficientnet_lite4": _lite(1.4, 1.8),
    "timm_efficientnet_lite0": _lite(1.0, 1.0)._replace(
        eps=1e-5, momentum=0.9, tensorflow=False, timm=True
    ),
}  # fmt: skip


class EfficientNet(Model):
    """A 3x3 convolution, inverted residuals, a 1x1 convolution, pool and linear classifier."""

    def __init__(
        self, name: str, *, num_classes: int, width: float, dropout: float, drop_path: float,
        bn_group: int, norm_impl: str, dtype: jnp.dtype | None, rngs: nnx.Rngs,
    ):  # fmt: skip
        """`dtype` is the compute dtype of convolutions; None: that of images and parameters."""
        self.name = name
        stem, stages, last, eps, momentum, tensorflow, lite, _ = VARIANTS[name]
        make = partial(
            ConvNorm.make, padding="SAME" if tensorflow else None, eps=eps, momentum=momentum,
            bn_group=bn_group, norm_impl=norm_impl, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.activation = nnx.relu6 if lite else nnx.silu
        gate = partial(SqueezeExcite, activation=nnx.silu, dtype=dtype, rngs=rngs)
        inputs = max(1, round(stem * width))
        conv, bn = make(3, inputs, 3, 2)
        features: list[Any] = [nnx.Dict(conv=conv, bn=bn)]
        # As in torchvision, timm and TensorFlow, the rate of a further block would be `drop_path`.
        total = sum(stage.blocks for stage in stages)
        rates = drop_path_rates(drop_path * (total - 1) / total, total)
        for stage in stages:
            outputs = max(1, round(stage.channels * width))
            blocks = []
            for i in range(stage.blocks):
                block = InvertedResidual(
                    inputs, inputs * stage.expansion, outputs, make, size=stage.size,
                    stride=1 if i else stage.stride, activation=self.activation, gate=gate,
                    squeezed=0 if lite or stage.fused else max(1, inputs // 4),
                    fused=stage.fused, rate=next(rates),
                )  # fmt: skip
                blocks.append(block)
                inputs = outputs
            features.append(nnx.List(blocks))
        conv, bn = make(inputs, max(1, round(last * width)), 1)
        features.append(nnx.Dict(conv=conv, bn=bn))
        self.features: nnx.List[Any] = nnx.List(features)
        self.dropout = nnx.Dropout(dropout)
        # Uniform in +-1 / sqrt(num_classes).
        init = nnx.initializers.variance_scaling(1 / 3, "fan_out", "uniform")
        self.classifier = nnx.Linear(conv.out_features, num_classes, kernel_init=init, rngs=rngs)

    def activations(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> Activations:
        self.require_pixels(images, 1)
        first, *stages, last = self.features
        x = ConvNorm(first.conv, first.bn)(images, train=train, activation=self.activation)
        yield "stem", x
        for i, blocks in enumerate(stages):
            for block in blocks:
                x = self.run(block, x, train=train, rngs=rngs)
            yield f"stage{i + 1}", x
        x = ConvNorm(last.conv, last.bn)(x, train=train, activation=self.activation)
        x = global_average_pool(x)
        x = self.dropout(x, deterministic=not train, rngs=rngs)
        yield "logits", self.classifier(x)


def _torch_name(name: str, path: Path) -> str:
    variant = VARIANTS[name]
    if variant.timm:
        return _timm_name(name, path)
    if variant.tensorflow:
        return _tensorflow_name(variant, path)
    if path[0] == "classifier":
        return "classifier.1"
    return ".".join({"conv": "0", "bn": "1"}.get(part, str(part)) for part in path)


def _tensorflow_name(variant: Variant, path: Path) -> str:
    """Return efficientnet_pytorch's name; block numbers run across stages."""
    if path[0] == "classifier":
        return "_fc"
    _, index, *place, kind = path
    if not place:
        names = ("_conv_stem", "_bn0") if index == 0 else ("_conv_head", "_bn1")
        return names[kind == "bn"]
    block, _, layer = place
    layer += variant.stages[index - 1].expansion == 1  # no first 1x1 convolution
    number = block + sum(stage.blocks for stage in variant.stages[: index - 1])
    if kind in ("fc1", "fc2"):
        return f"_blocks.{number}._se_{'reduce' if kind == 'fc1' else 'expand'}"
    layer = min(layer, 2)  # the squeeze-and-excitation, if any, comes before the last
    conv = ("_expand_conv", "_depthwise_conv", "_project_conv")[layer]
    return f"_blocks.{number}.{conv if kind == 'conv' else f'_bn{layer}'}"


def _in_timm(variant: Variant) -> bool:
    """Return whether timm has this network. timm's B5-B7 have another batch-norm epsilon."""
    return variant.tensorflow or variant.timm or variant.eps == 1e-5


def _timm_name(name: str, path: Path) -> str:
    variant = VARIANTS[name]
    if not _in_timm(variant):
        return _torch_name(name, path)
    if path[0] == "classifier":
        return "classifier"
    _, index, *place, part = path
    if not place:
        return timm_end_name(index, part)
    block, _, layer = place
    expands = variant.stages[index - 1].expansion > 1
    return timm_block_name(index - 1, block, layer, part, expands=expands)


def identify(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the EfficientNet models that fit a state dict: see Family.

    Variants of equal depth are told apart by the ratio of the channels of two layers.
    """
    if "conv_stem.weight" in arrays:
        head, depths = "conv_head.weight", count_blocks(arrays, TIMM_BLOCK)
        lite = "blocks.0.0.se.conv_reduce.weight" not in arrays
        variants = {n: v for n, v in VARIANTS.items() if v.lite == lite and not v.stages[0].fused}
    elif "_conv_stem.weight" in arrays:
        head = "_conv_head.weight"
        depths = (len({key.split(".")[1] for key in arrays if key.startswith("_blocks.")}),)
        lite = "_blocks.0._se_reduce.weight" not in arrays
        variants = {n: v for n, v in VARIANTS.items() if v.tensorflow and v.lite == lite}
    else:
        depths = count_blocks(arrays, r"features\.(\d+)\.(\d+)\.block")
        head = f"features.{len(depths) + 1}.0.weight"
        variants = {n: v for n, v in VARIANTS.items() if not (v.tensorflow or v.timm)}
    found = []
    for name, variant in variants.items():
        blocks = tuple(stage.blocks for stage in variant.stages)
        if depths not in (blocks, (sum(blocks),)) or head not in arrays:
            continue
        kernel, inner = arrays[head], variant.stages[-1].channels
        width = len(kernel) / variant.last
        if abs(kernel.shape[1] - inner * width) <= 1:
            found.append({"name": name, "width": width})
    return found


FAMILY = Family(
    model=EfficientNet,
    variants=tuple(VARIANTS),
    fields={
        "dropout": dropout_field(0.2),
        "drop_path": DROP_PATH,
        "bn_group": BN_GROUP,
        "norm_impl": NORM_IMPL,
    },
    # V2 has 6 or 7 stages, so its last convolution has index 7 or 8.
    groups=(
        *((("features", i),) for i in range(7)),
        (("features", 7), ("features", 8)),
        (("classifier",),),
    ),
    first="features.0.0",
    identify=identify,
    torch_name=_torch_name,
    timm_name=_timm_name,
)
