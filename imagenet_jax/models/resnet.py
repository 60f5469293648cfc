"""ResNets (He et al. 2015, arXiv:1512.03385), v1.5: the stride is on the 3x3 of a bottleneck.

ResNeXts (Xie et al. 2016, arXiv:1611.05431) and wide ResNets (Zagoruyko & Komodakis 2016,
arXiv:1605.07146) differ in the channels of that 3x3, and in the groups that it convolves apart.

Semantics, initial weights and module names of torchvision.models.resnet, in NHWC.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.config.fields import Field
from imagenet_jax.errors import UserError
from imagenet_jax.models.base import Family, Model, count_blocks, count_outputs
from imagenet_jax.models.layers import BN_GROUP, NORM_IMPL, ConvNorm, drop_path, uniform_linear

Make = Callable[..., ConvNorm]  # ConvNorm.make with the options of the network

FIELDS = {
    "stem": Field(
        "imagenet", "imagenet: 7x7 convolution of stride 2 and max-pool; small: 3x3, no stride",
        choices=("imagenet", "small"),
    ),
    "zero_init_residual": Field(
        False, "Start the scale of the last norm of each block at 0 (Goyal 2017)"
    ),
    "drop_path": Field(
        0.0, "Probability to skip the last block; it rises linearly from 0 at the first block",
        at_least=0, below=1, aliases=("drop_path_rate", "stochastic_depth"),
    ),
    "blur_pool": Field(
        "none", "ffcv: low-pass filter before strided convolutions", choices=("none", "ffcv")
    ),
    "bn_group": BN_GROUP,
    "norm_impl": NORM_IMPL,
}  # fmt: skip


class Block(nnx.Module):
    """A residual branch, which drop path may skip in training, plus a shortcut, then ReLU."""

    expansion: int  # output channels over `features`
    last_norm: str  # of the branch

    def __init__(self, inputs: int, features: int, stride: int, make: Make, rate: float = 0.0):
        """`rate` is the probability of drop path to skip the block."""
        self.rate = rate
        outputs = self.expansion * features
        self.add_branch(inputs, features, stride, make)
        changes_shape = stride > 1 or inputs != outputs
        self.downsample: nnx.List[Any] | None = (
            nnx.List(make(inputs, outputs, 1, stride)) if changes_shape else None
        )

    def add_branch(self, inputs: int, features: int, stride: int, make: Make) -> None:
        """Create the layers of the branch."""
        raise NotImplementedError

    def branch(self, x: jax.Array, *, train: bool) -> jax.Array:
        """f[B, H, W, I] -> f[B, h, w, O]."""
        raise NotImplementedError

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """f[B, H, W, I] -> f[B, h, w, O].

        Raises ValueError in training if there is a drop path rate but no `rngs`.
        """
        y = self.branch(x, train=train)
        if train and self.rate:
            if rngs is None:
                raise ValueError("drop path needs rngs=nnx.Rngs(dropout=key) in training")
            y = drop_path(y, self.rate, rngs.dropout())
        if self.downsample is not None:
            x = ConvNorm(*self.downsample)(x, train=train, activation=None)
        return nnx.relu(y + x)

    def zero_last_scale(self) -> None:
        """Start as the shortcut (Goyal et al. 2017, arXiv:1706.02677, section 5.1)."""
        scale = getattr(self, self.last_norm).scale
        scale[...] = jnp.zeros_like(scale[...])


class BasicBlock(Block):
    """3x3, 3x3."""

    expansion, last_norm = 1, "bn2"

    def add_branch(self, inputs: int, features: int, stride: int, make: Make) -> None:
        self.conv1, self.bn1 = make(inputs, features, 3, stride)
        self.conv2, self.bn2 = make(features, features, 3)

    def branch(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = ConvNorm(self.conv1, self.bn1)(x, train=train)
        return ConvNorm(self.conv2, self.bn2)(x, train=train, activation=None)


class Bottleneck(Block):
    """1x1, 3x3, 1x1 to four times the channels."""

    expansion, last_norm = 4, "bn3"
    groups, group_width = 1, 64  # of the 3x3, where `features` is 64

    @classmethod
    def inner(cls, features: int) -> int:
        """Return the channels of the 3x3."""
        return max(1, features * cls.group_width // 64) * cls.groups

    def add_branch(self, inputs: int, features: int, stride: int, make: Make) -> None:
        inner = self.inner(features)
        self.conv1, self.bn1 = make(inputs, inner, 1)
        self.conv2, self.bn2 = make(inner, inner, 3, stride, groups=self.groups)
        self.conv3, self.bn3 = make(inner, 4 * features, 1)

    def branch(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = ConvNorm(self.conv1, self.bn1)(x, train=train)
        x = ConvNorm(self.conv2, self.bn2)(x, train=train)
        return ConvNorm(self.conv3, self.bn3)(x, train=train, activation=None)


class Bottleneck32x4(Bottleneck):
    """32 groups of 4 channels."""

    groups, group_width = 32, 4


class Bottleneck32x8(Bottleneck):
    """32 groups of 8 channels."""

    groups, group_width = 32, 8


class Bottleneck64x4(Bottleneck):
    """64 groups of 4 channels."""

    groups, group_width = 64, 4


class WideBottleneck(Bottleneck):
    """A 3x3 of twice the channels."""

    group_width = 128


# name -> (block, blocks in each of the four stages)
VARIANTS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
    "resnext50_32x4d": (Bottleneck32x4, (3, 4, 6, 3)),
    "resnext101_32x8d": (Bottleneck32x8, (3, 4, 23, 3)),
    "resnext101_64x4d": (Bottleneck64x4, (3, 4, 23, 3)),
    "wide_resnet50_2": (WideBottleneck, (3, 4, 6, 3)),
    "wide_resnet101_2": (WideBottleneck, (3, 4, 23, 3)),
}


class ResNet(Model):
    """Stem, four stages of blocks, global average pool, linear classifier."""

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        width: float,
        stem: str,
        zero_init_residual: bool,
        drop_path: float,
        bn_group: int,
        norm_impl: str,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        """`dtype` is the compute dtype of convolutions; None: that of images and parameters."""
        self.name, self.small_stem = name, stem == "small"
        block_type, depths = VARIANTS[name]
        make = partial(
            ConvNorm.make, bn_group=bn_group, norm_impl=norm_impl, dtype=dtype, rngs=rngs
        )
        # From 0 to `drop_path`, as in timm, whose recipes the configs follow; the paper's linear
        # rule drops the first block too.
        rates = iter(drop_path * i / max(1, sum(depths) - 1) for i in range(sum(depths)))
        channels = features = round(64 * width)
        self.conv1, self.bn1 = make(3, channels, 3) if self.small_stem else make(3, channels, 7, 2)
        stages = []
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                block = block_type(channels, features * 2**i, stride, make, next(rates))
                channels = features * 2**i * block_type.expansion
                if zero_init_residual:
                    block.zero_last_scale()
                blocks.append(block)
            stages.append(nnx.List(blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = uniform_linear(channels, num_classes, rngs=rngs)

    def activations(
        self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None
    ) -> Iterator[tuple[str, jax.Array]]:
        if min(images.shape[1:3]) < 1:
            raise UserError(f"images of {images.shape[1]}x{images.shape[2]} pixels are empty")
        x = ConvNorm(self.conv1, self.bn1)(images, train=train)
        if not self.small_stem:
            # flax annotates padding as str; it takes pairs too.
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore
        yield "stem", x
        for i, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)):
            for block in stage:
                x = self.run(block, x, train=train, rngs=rngs)
            yield f"layer{i + 1}", x
        # float32 from here: the mean over 7x7 and the logits are cheap and should not round.
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        yield "logits", self.fc(x)


def identify(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the ResNet of a state dict: see Family."""
    depths, channels = (
        count_blocks(arrays, r"layer(\d+)\.(\d+)\."), count_outputs(arrays, "conv1.weight"),
    )  # fmt: skip
    middle = arrays.get("layer1.0.conv2.weight")
    if not channels or middle is None or middle.ndim != 4:
        return []
    stem = "small" if arrays["conv1.weight"].shape[-1] == 3 else "imagenet"
    is_bottleneck = "layer1.0.conv3.weight" in arrays
    shape = middle.shape[0], middle.shape[0] // middle.shape[1]  # channels and groups
    return [
        {"name": name, "width": channels / 64, "stem": stem}
        for name, (block, known) in VARIANTS.items()
        if known == depths
        and (
            shape == (block.inner(channels), block.groups)
            if issubclass(block, Bottleneck)
            else not is_bottleneck
        )
    ]


FAMILY = Family(
    model=ResNet,
    variants=tuple(VARIANTS),
    fields=FIELDS,
    groups=((("conv1",), ("bn1",)), *(((f"layer{i}",),) for i in (1, 2, 3, 4)), (("fc",),)),
    first="conv1",
    identify=identify,
)
