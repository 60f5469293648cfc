"""ResNets (He et al. 2015, arXiv:1512.03385), v1.5: the stride is on the 3x3 of a bottleneck.

Semantics, initial weights and module names of torchvision.models.resnet, in NHWC.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from imagenet_jax.errors import UserError
from imagenet_jax.models.norm import BatchNorm

# name -> (block, blocks in each of the four stages)
VARIANTS: dict[str, tuple[str, tuple[int, int, int, int]]] = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}
FIELDS = ("stem", "zero_init_residual")
STEMS = ("imagenet", "small")


def check(config: ConfigDict | Mapping[str, Any]) -> None:
    """UserError unless this family's own fields of `config.model` have values it knows."""
    if config["stem"] not in STEMS:
        raise UserError(f"config.model.stem = {config['stem']!r}: use {' | '.join(STEMS)}")
    if not isinstance(config["zero_init_residual"], bool):
        raise UserError(
            f"config.model.zero_init_residual = {config['zero_init_residual']!r}: use True or False"
        )


class ResNet(nnx.Module):
    """Stem, four stages of blocks, global average pool, linear classifier."""

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        width: float,
        stem: str,
        zero_init_residual: bool,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        """`dtype` is the compute dtype of convolutions; None: that of images and parameters."""
        kind, depths = VARIANTS[name]
        block: type[BasicBlock] | type[Bottleneck]
        block = BasicBlock if kind == "basic" else Bottleneck
        base = round(64 * width)

        def stage(i: int) -> nnx.List:
            features = base * 2**i
            inputs = base if i == 0 else features // 2 * block.expansion
            blocks = []
            for j in range(depths[i]):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(block(inputs, features, stride, dtype=dtype, rngs=rngs))
                inputs = features * block.expansion
                if zero_init_residual:
                    blocks[-1].zero_last_scale()
            return nnx.List(blocks)

        self.small_stem = stem == "small"
        size, stride = (3, 1) if self.small_stem else (7, 2)
        self.conv1 = _conv(3, base, size, stride, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(base)
        self.layer1, self.layer2, self.layer3, self.layer4 = (stage(i) for i in range(4))
        self.fc = _classifier(base * 8 * block.expansion, num_classes, rngs=rngs)

    def activations(
        self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None
    ) -> Iterator[tuple[str, jax.Array]]:
        """(name, value) of the stem, of each stage and of the logits, in order."""
        if min(images.shape[1:3]) < 1:
            raise UserError(f"images of {images.shape[1]}x{images.shape[2]} pixels are empty")
        x = nnx.relu(self.bn1(self.conv1(images), train=train))
        if not self.small_stem:
            # flax annotates padding as str; it takes pairs too.
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore
        yield "stem", x
        for i, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)):
            for block in stage:
                x = block(x, train=train)
            yield f"layer{i + 1}", x
        # float32 from here: the mean over 7x7 and the logits are cheap and should not round.
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        yield "logits", self.fc(x)

    def __call__(
        self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """f[B, H, W, 3] -> logits f32[B, num_classes].

        `train` normalises with, and moves, batch statistics. Nothing here draws from `rngs`.
        Raises UserError for empty images.
        """
        *_, (_, logits) = self.activations(images, train=train)
        return logits


class BasicBlock(nnx.Module):
    """3x3, 3x3, added to a shortcut."""

    expansion = 1

    def __init__(
        self,
        inputs: int,
        features: int,
        stride: int,
        *,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        self.conv1 = _conv(inputs, features, 3, stride, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(features)
        self.conv2 = _conv(features, features, 3, 1, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(features)
        self.downsample = _downsample(inputs, features, stride, dtype=dtype, rngs=rngs)

    def zero_last_scale(self) -> None:
        """Start as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1)."""
        self.bn2.scale[...] = jnp.zeros_like(self.bn2.scale[...])

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = nnx.relu(self.bn1(self.conv1(x), train=train))
        y = self.bn2(self.conv2(y), train=train)
        return nnx.relu(y + _shortcut(self.downsample, x, train=train))


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1 with four times the channels at the end, added to a shortcut."""

    expansion = 4

    def __init__(
        self,
        inputs: int,
        features: int,
        stride: int,
        *,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        outputs = features * self.expansion
        self.conv1 = _conv(inputs, features, 1, 1, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(features)
        self.conv2 = _conv(features, features, 3, stride, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(features)
        self.conv3 = _conv(features, outputs, 1, 1, dtype=dtype, rngs=rngs)
        self.bn3 = BatchNorm(outputs)
        self.downsample = _downsample(inputs, outputs, stride, dtype=dtype, rngs=rngs)

    def zero_last_scale(self) -> None:
        """Start as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1)."""
        self.bn3.scale[...] = jnp.zeros_like(self.bn3.scale[...])

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = nnx.relu(self.bn1(self.conv1(x), train=train))
        y = nnx.relu(self.bn2(self.conv2(y), train=train))
        y = self.bn3(self.conv3(y), train=train)
        return nnx.relu(y + _shortcut(self.downsample, x, train=train))


def _conv(
    inputs: int,
    outputs: int,
    size: int,
    stride: int,
    *,
    dtype: jnp.dtype | None,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=size // 2,  # symmetric, as torch; "SAME" would shift strided convolutions
        use_bias=False,
        # He et al. 2015, arXiv:1502.01852, over the fan-out, as torchvision chooses.
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        dtype=dtype,
        rngs=rngs,
    )


def _downsample(
    inputs: int, outputs: int, stride: int, *, dtype: jnp.dtype | None, rngs: nnx.Rngs
) -> nnx.List | None:
    """1x1 convolution and norm where the block changes the shape, else None: the identity."""
    if stride == 1 and inputs == outputs:
        return None
    return nnx.List([_conv(inputs, outputs, 1, stride, dtype=dtype, rngs=rngs), BatchNorm(outputs)])


def _shortcut(downsample: nnx.List | None, x: jax.Array, *, train: bool) -> jax.Array:
    if downsample is None:
        return x
    conv, bn = downsample
    return bn(conv(x), train=train)


def _classifier(inputs: int, outputs: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """torch's default linear layer: weights and bias uniform within 1 / sqrt(inputs)."""
    bound = inputs**-0.5

    def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Linear(inputs, outputs, kernel_init=uniform, bias_init=uniform, rngs=rngs)
