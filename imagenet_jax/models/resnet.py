"""ResNets (He et al. 2015, arXiv:1512.03385), v1.5: the stride is on the 3x3 of a bottleneck.

Semantics, initial weights and module names of torchvision.models.resnet, in NHWC.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from imagenet_jax.config.fields import Field
from imagenet_jax.errors import UserError
from imagenet_jax.models import blur_pool
from imagenet_jax.models.drop_path import drop_path, linear_rates
from imagenet_jax.models.norm import BatchNorm, GroupNorm
from imagenet_jax.models.weight_standardization import StandardizedConv

# name -> (block, blocks in each of the four stages)
VARIANTS: dict[str, tuple[str, tuple[int, int, int, int]]] = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}
HEAD = ("fc",)  # the last linear layer among the parameters
# Where they lie from input to output, for learning rates by depth; the last is the head.
GROUPS = ((("conv1",), ("bn1",)), *(((f"layer{i}",),) for i in (1, 2, 3, 4)), (HEAD,))
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
        "none", "Low-pass filter. zhang: after strided 3x3 convolutions; ffcv: before them",
        choices=blur_pool.FORMS,
    ),
    "norm": Field(
        "batch", "Batch norm, or group norm of 32 groups of channels", choices=("batch", "group")
    ),
    "weight_standardization": Field(False, "Kernels of mean 0 and variance 1 (Qiao 2019)"),
    "bn_group": Field(
        0, "Images that batch norm sees together in training; 0: the whole batch", at_least=0,
        read_by={"model.norm": ("batch",)},
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """What all blocks of a network share: `config.model`'s fields of these names."""

    dtype: jnp.dtype | None = None  # of convolutions; None: that of images and parameters
    norm: str = "batch"
    bn_group: int = 0
    weight_standardization: bool = False
    blur_pool: str = "none"


DEFAULT = Options()


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
        drop_path: float,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        """`options` are the fields of Options."""
        self.options = Options(**options)
        kind, depths = VARIANTS[name]
        block: type[BasicBlock] | type[Bottleneck]
        block = BasicBlock if kind == "basic" else Bottleneck
        base = round(64 * width)
        rates = linear_rates(drop_path, sum(depths))

        def stage(i: int) -> nnx.List:
            features = base * 2**i
            inputs = base if i == 0 else features // 2 * block.expansion
            blocks = []
            for j in range(depths[i]):
                stride = 2 if i > 0 and j == 0 else 1
                rate = rates[sum(depths[:i]) + j]
                blocks.append(
                    block(inputs, features, stride, self.options, drop_path=rate, rngs=rngs)
                )
                inputs = features * block.expansion
                if zero_init_residual:
                    blocks[-1].zero_last_scale()
            return nnx.List(blocks)

        self.small_stem = stem == "small"
        size, stride = (3, 1) if self.small_stem else (7, 2)
        self.conv1 = _conv(3, base, size, stride, self.options, rngs=rngs)
        self.bn1 = _norm(base, self.options)
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
            blur = self.options.blur_pool
            stride = blur_pool.own_stride(2, blur)
            # flax annotates padding as str; it takes pairs too.
            x = nnx.max_pool(x, (3, 3), strides=(stride, stride), padding=((1, 1), (1, 1)))  # pyright: ignore
            x = blur_pool.after_stride(x, 2, blur)
        yield "stem", x
        for i, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)):
            for block in stage:
                x = block(x, train=train, rngs=rngs)
            yield f"layer{i + 1}", x
        # float32 from here: the mean over 7x7 and the logits are cheap and should not round.
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        yield "logits", self.fc(x)

    def __call__(
        self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """f[B, H, W, 3] -> logits f32[B, num_classes].

        `train` normalises with, and moves, batch statistics, and drops residual branches by draws
        from `rngs.dropout`, which must be given unless `drop_path` is 0.
        Raises UserError for empty images.
        """
        *_, (_, logits) = self.activations(images, train=train, rngs=rngs)
        return logits


class Block(nnx.Module):
    """What both kinds of block share: the shortcut, and drop path of the residual branch."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        options: Options,
        drop_path: float,
        rngs: nnx.Rngs,
    ):
        self.stride, self.blur, self.rate = stride, options.blur_pool, drop_path
        self.downsample = _downsample(inputs, outputs, stride, options, rngs=rngs)

    def join(
        self, x: jax.Array, residual: jax.Array, *, train: bool, rngs: nnx.Rngs | None
    ) -> jax.Array:
        """ReLU of the shortcut of x plus the residual branch, which drop path may leave out.

        Raises ValueError in training where drop path has no `rngs`.
        """
        if train and self.rate:
            if rngs is None:
                raise ValueError("drop path needs rngs=nnx.Rngs(dropout=key) in training")
            residual = drop_path(residual, self.rate, rngs.dropout())
        if self.downsample is not None:
            conv, norm = self.downsample[0], self.downsample[1]
            x = norm(conv(blur_pool.shortcut(x, self.stride, self.blur)), train=train)
        return nnx.relu(residual + x)


class BasicBlock(Block):
    """3x3, 3x3, added to a shortcut."""

    expansion = 1

    def __init__(
        self,
        inputs: int,
        features: int,
        stride: int,
        options: Options = DEFAULT,
        *,
        drop_path: float = 0.0,
        rngs: nnx.Rngs,
    ):
        own_stride = blur_pool.own_stride(stride, options.blur_pool)
        self.conv1 = _conv(inputs, features, 3, own_stride, options, rngs=rngs)
        self.bn1 = _norm(features, options)
        self.conv2 = _conv(features, features, 3, 1, options, rngs=rngs)
        self.bn2 = _norm(features, options)
        super().__init__(inputs, features, stride, options, drop_path, rngs)

    def zero_last_scale(self) -> None:
        """Start as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1)."""
        self.bn2.scale[...] = jnp.zeros_like(self.bn2.scale[...])

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = nnx.relu(
            self.bn1(self.conv1(blur_pool.before_stride(x, self.stride, self.blur)), train=train)
        )
        y = self.bn2(self.conv2(blur_pool.after_stride(y, self.stride, self.blur)), train=train)
        return self.join(x, y, train=train, rngs=rngs)


class Bottleneck(Block):
    """1x1, 3x3, 1x1 with four times the channels at the end, added to a shortcut."""

    expansion = 4

    def __init__(
        self,
        inputs: int,
        features: int,
        stride: int,
        options: Options = DEFAULT,
        *,
        drop_path: float = 0.0,
        rngs: nnx.Rngs,
    ):
        outputs = features * self.expansion
        own_stride = blur_pool.own_stride(stride, options.blur_pool)
        self.conv1 = _conv(inputs, features, 1, 1, options, rngs=rngs)
        self.bn1 = _norm(features, options)
        self.conv2 = _conv(features, features, 3, own_stride, options, rngs=rngs)
        self.bn2 = _norm(features, options)
        self.conv3 = _conv(features, outputs, 1, 1, options, rngs=rngs)
        self.bn3 = _norm(outputs, options)
        super().__init__(inputs, outputs, stride, options, drop_path, rngs)

    def zero_last_scale(self) -> None:
        """Start as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1)."""
        self.bn3.scale[...] = jnp.zeros_like(self.bn3.scale[...])

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = nnx.relu(self.bn1(self.conv1(x), train=train))
        y = nnx.relu(
            self.bn2(self.conv2(blur_pool.before_stride(y, self.stride, self.blur)), train=train)
        )
        y = self.bn3(self.conv3(blur_pool.after_stride(y, self.stride, self.blur)), train=train)
        return self.join(x, y, train=train, rngs=rngs)


def _conv(
    inputs: int, outputs: int, size: int, stride: int, options: Options = DEFAULT, *, rngs: nnx.Rngs
) -> nnx.Conv:
    kind = StandardizedConv if options.weight_standardization else nnx.Conv
    return kind(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=size // 2,  # symmetric, as torch; "SAME" would shift strided convolutions
        use_bias=False,
        # He et al. 2015, arXiv:1502.01852, over the fan-out, as torchvision chooses.
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        dtype=options.dtype,
        rngs=rngs,
    )


def _downsample(
    inputs: int, outputs: int, stride: int, options: Options, *, rngs: nnx.Rngs
) -> nnx.List | None:
    """1x1 convolution and norm where the block changes the shape, else None: the identity."""
    if stride == 1 and inputs == outputs:
        return None
    own_stride = stride if options.blur_pool == "none" else 1
    conv = _conv(inputs, outputs, 1, own_stride, options, rngs=rngs)
    return nnx.List([conv, _norm(outputs, options)])


def _norm(features: int, options: Options) -> BatchNorm | GroupNorm:
    if options.norm == "group":
        return GroupNorm(features)
    return BatchNorm(features, images_per_group=options.bn_group)


def _classifier(inputs: int, outputs: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """torch's default linear layer: weights and bias uniform within 1 / sqrt(inputs)."""
    bound = inputs**-0.5

    def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Linear(inputs, outputs, kernel_init=uniform, bias_init=uniform, rngs=rngs)
