"""ResNet v1.5 (He et al. 2015, arXiv:1512.03385), with the stride in the 3x3 of bottlenecks.

- ResNeXt (Xie et al. 2016, arXiv:1611.05431) and wide ResNets (Zagoruyko & Komodakis 2016,
  arXiv:1605.07146) have other channels and groups in the 3x3 convolution of bottlenecks.
- ResNet-D (He et al. 2018, arXiv:1812.01187) has a stem of three 3x3 convolutions, and shortcuts
  with 2x2 average pooling.
- SE-ResNet (Hu et al. 2017, arXiv:1709.01507) ends each branch with squeeze-and-excitation.
- ResNet v1, as in the first paper and in Keras, has the stride in the first 1x1 of bottlenecks.

Semantics, initial weights and module names follow torchvision.models.resnet, and timm.models.resnet
for ResNet-D and SE-ResNet; arrays are NHWC.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.config.fields import Field
from imagenet_jax.models.base import Activations, Family, Model, count_blocks
from imagenet_jax.models.layers import (
    BN_GROUP,
    DROP_PATH,
    NORM_IMPL,
    ConvNorm,
    SqueezeExcite,
    add_layers,
    drop_branch,
    drop_path_rates,
    global_average_pool,
    relu,
    uniform_linear,
)
from imagenet_jax.models.windows import max_pool

Make = Callable[..., ConvNorm]  # ConvNorm.make with the options of the network

FIELDS = {
    "stem": Field(
        "imagenet", "imagenet: 7x7 convolution of stride 2 and max-pool; small: 3x3 of stride 1",
        choices=("imagenet", "small"),
    ),
    "zero_init_residual": Field(False, "Initialize the last scale of each block to 0 (Goyal 2017)"),
    "drop_path": DROP_PATH,
    "blur_pool": Field(
        "none", "ffcv: low-pass filter before strided convolutions", choices=("none", "ffcv")
    ),
    "bn_group": BN_GROUP,
    "norm_impl": NORM_IMPL,
}  # fmt: skip


class Variant(NamedTuple):
    """What distinguishes one ResNet.

    Attributes:
      depths: blocks in each of the four stages.
      bottleneck: has bottlenecks, not basic blocks.
      groups: groups of the 3x3 convolution of a bottleneck.
      group_width: channels of each group in the first stage, at width 1.
      deep: is a ResNet-D.
      squeeze: has squeeze-and-excitation.
      v1: is a ResNet v1.
    """

    depths: tuple[int, ...]
    bottleneck: bool = True
    groups: int = 1
    group_width: int = 64
    deep: bool = False
    squeeze: bool = False
    v1: bool = False

    def inner(self, features: int) -> int:
        """Return the channels of the 3x3 convolution of a bottleneck."""
        return max(1, features * self.group_width // 64) * self.groups


VARIANTS = {
    "resnet18": Variant((2, 2, 2, 2), bottleneck=False),
    "resnet34": Variant((3, 4, 6, 3), bottleneck=False),
    "resnet50": Variant((3, 4, 6, 3)),
    "resnet101": Variant((3, 4, 23, 3)),
    "resnet152": Variant((3, 8, 36, 3)),
    "resnext50_32x4d": Variant((3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x8d": Variant((3, 4, 23, 3), groups=32, group_width=8),
    "resnext101_64x4d": Variant((3, 4, 23, 3), groups=64, group_width=4),
    "wide_resnet50_2": Variant((3, 4, 6, 3), group_width=128),
    "wide_resnet101_2": Variant((3, 4, 23, 3), group_width=128),
    "resnet18d": Variant((2, 2, 2, 2), bottleneck=False, deep=True),
    "resnet34d": Variant((3, 4, 6, 3), bottleneck=False, deep=True),
    "resnet50d": Variant((3, 4, 6, 3), deep=True),
    "resnet101d": Variant((3, 4, 23, 3), deep=True),
    "resnet152d": Variant((3, 8, 36, 3), deep=True),
    "seresnet50": Variant((3, 4, 6, 3), squeeze=True),
    "resnet50_v1": Variant((3, 4, 6, 3), v1=True),
    "resnet101_v1": Variant((3, 4, 23, 3), v1=True),
    "resnet152_v1": Variant((3, 8, 36, 3), v1=True),
}
# In state dicts of v1, so that they are not read as v1.5: names and shapes of arrays are the same.
V1_MARK = {"layer2.0.conv1.stride": np.array(2)}


class Block(nnx.Module):
    """A residual branch, which drop path may skip in training, plus a shortcut; then ReLU."""

    expansion: int  # output channels over `features`
    depth: int  # convolutions in the branch: conv1, conv2 ...
    downsample: nnx.List[Any] | None = None
    se: SqueezeExcite | None = None  # at the end of the branch
    rate = 0.0  # probability of dropping the branch

    def __init__(self, inputs: int, features: int, stride: int, make: Make, variant: Variant):
        outputs = self.expansion * features
        self.build(inputs, features, stride, make, variant)
        self.pools = variant.deep and stride > 1
        if stride > 1 or inputs != outputs:
            layers = make(inputs, outputs, 1, 1 if variant.deep else stride)
            # In timm's ResNet-D, index 0 is the pool or an identity.
            self.downsample = nnx.List([None, *layers] if variant.deep else layers)

    def build(self, inputs: int, features: int, stride: int, make: Make, variant: Variant) -> None:
        """Create the layers of the branch."""
        raise NotImplementedError

    def layer(self, i: int) -> ConvNorm:
        """Return the convolution `i` of the branch, from 1, and its norm."""
        return ConvNorm(getattr(self, f"conv{i}"), getattr(self, f"bn{i}"))

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """f[B, H, W, I] -> f[B, h, w, O].

        Raises ValueError in training if there is a drop path rate but no `rngs`.
        """
        y = x
        for i in range(1, self.depth):
            y = self.layer(i)(y, train=train)
        last = self.layer(self.depth)
        if self.downsample is not None:
            if self.pools:
                # Windows at the end of an odd side have fewer pixels.
                odd = tuple((0, side % 2) for side in x.shape[1:3])
                x = nnx.avg_pool(x, (2, 2), (2, 2), odd, count_include_pad=False)  # pyright: ignore
            shortcut = ConvNorm(*list(self.downsample)[-2:])
            if self.se is None and not self.rate:
                return relu(add_layers([(last, y), (shortcut, x)], train=train))
            x = shortcut(x, train=train, activation=None)
        y = last(y, train=train, activation=None)
        if self.se is not None:
            y = self.se(y)
        return relu(drop_branch(y, self.rate, train=train, rngs=rngs) + x)


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    expansion, depth = 1, 2

    def build(self, inputs: int, features: int, stride: int, make: Make, variant: Variant) -> None:
        self.conv1, self.bn1 = make(inputs, features, 3, stride)
        self.conv2, self.bn2 = make(features, features, 3)


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions; the last has four times the channels."""

    expansion, depth = 4, 3

    def build(self, inputs: int, features: int, stride: int, make: Make, variant: Variant) -> None:
        inner = variant.inner(features)
        first, second = (stride, 1) if variant.v1 else (1, stride)
        self.conv1, self.bn1 = make(inputs, inner, 1, first)
        self.conv2, self.bn2 = make(inner, inner, 3, second, groups=variant.groups)
        self.conv3, self.bn3 = make(inner, 4 * features, 1)


class ResNet(Model):
    """Stem, four stages of blocks, global average pool, linear classifier."""

    def __init__(
        self, name: str, *, num_classes: int, width: float, stem: str, zero_init_residual: bool,
        drop_path: float, bn_group: int, norm_impl: str, dtype: jnp.dtype | None, rngs: nnx.Rngs,
    ):  # fmt: skip
        """`dtype` is the compute dtype of convolutions; None: that of images and parameters."""
        self.name, self.small_stem = name, stem == "small"
        variant = VARIANTS[name]
        block_type: type[Block] = Bottleneck if variant.bottleneck else BasicBlock
        make = partial(
            ConvNorm.make, bn_group=bn_group, norm_impl=norm_impl, dtype=dtype, rngs=rngs
        )
        rates = drop_path_rates(drop_path, sum(variant.depths))
        channels = features = round(64 * width)
        if variant.deep and not self.small_stem:
            half = max(1, channels // 2)
            (conv, bn), (conv2, bn2) = make(3, half, 3, 2), make(half, half, 3)
            conv3, self.bn1 = make(half, channels, 3)
            # timm's indices also count the ReLUs.
            self.conv1: Any = nnx.List([conv, bn, None, conv2, bn2, None, conv3])
        else:
            size, stride = (3, 1) if self.small_stem else (7, 2)
            self.conv1, self.bn1 = make(3, channels, size, stride)
        stages = []
        for i, depth in enumerate(variant.depths):
            blocks = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                block = block_type(channels, features * 2**i, stride, make, variant)
                block.rate = next(rates)
                channels = features * 2**i * block_type.expansion
                if variant.squeeze:
                    squeezed = 8 * max(1, round(channels / 128))  # 1/16, rounded as in timm
                    block.se = SqueezeExcite(channels, squeezed, dtype=dtype, rngs=rngs)
                if zero_init_residual:  # Goyal et al. 2017, arXiv:1706.02677, section 5.1
                    scale = getattr(block, f"bn{block.depth}").scale
                    scale[...] = jnp.zeros_like(scale[...])
                blocks.append(block)
            stages.append(nnx.List(blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = uniform_linear(channels, num_classes, rngs=rngs)

    def activations(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> Activations:
        self.require_pixels(images, 1)
        x, last = images, self.conv1
        if isinstance(last, nnx.List):
            conv, bn, _, conv2, bn2, _, last = last
            x = ConvNorm(conv, bn)(x, train=train)
            x = ConvNorm(conv2, bn2)(x, train=train)
        pool = None if self.small_stem else partial(max_pool, window=3, padding=1)
        x = ConvNorm(last, self.bn1)(x, train=train, max_pool=pool)
        yield "stem", x
        for i, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)):
            for block in stage:
                x = self.run(block, x, train=train, rngs=rngs)
            yield f"layer{i + 1}", x
        x = global_average_pool(x)
        yield "logits", self.fc(x)


def identify(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the ResNet models that fit a state dict: see Family."""
    depths = count_blocks(arrays, r"layer(\d+)\.(\d+)\.")
    stem = arrays.get("conv1.weight", arrays.get("conv1.6.weight"))  # its last convolution
    middle, shortcut = map(arrays.get, ("layer1.0.conv2.weight", "layer2.0.downsample.1.weight"))
    if stem is None or stem.ndim != 4 or middle is None or middle.ndim != 4:
        return []
    channels = len(stem)
    found = Variant(
        depths,
        bottleneck="layer1.0.conv3.weight" in arrays,
        deep=shortcut is not None and shortcut.ndim == 4,
        squeeze="layer1.0.se.fc1.weight" in arrays,
        v1=arrays.keys() >= V1_MARK.keys(),
    )
    is_small = "conv1.weight" in arrays and stem.shape[-1] == 3
    shape = middle.shape[0], middle.shape[0] // middle.shape[1]  # channels and groups
    return [
        {"name": name, "width": channels / 64, "stem": "small" if is_small else "imagenet"}
        for name, variant in VARIANTS.items()
        if variant._replace(groups=1, group_width=64) == found
        and (not found.bottleneck or shape == (variant.inner(channels), variant.groups))
    ]


FAMILY = Family(
    model=ResNet,
    variants=tuple(VARIANTS),
    fields=FIELDS,
    groups=((("conv1",), ("bn1",)), *(((f"layer{i}",),) for i in (1, 2, 3, 4)), (("fc",),)),
    first="conv1",
    identify=identify,
    constants=lambda name: V1_MARK if VARIANTS[name].v1 else {},
)
