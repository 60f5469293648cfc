"""ResNets (He et al. 2015, arXiv:1512.03385), v1.5: the stride is on the 3x3 of a bottleneck.

Semantics, initial weights and parameter order of torchvision.models.resnet, in NHWC.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from imagenet_jax.errors import UserError
from imagenet_jax.models.norm import BatchNorm

# name -> (block, blocks in each of the four stages)
VARIANTS: dict[str, tuple[str, tuple[int, ...]]] = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}

# He et al. 2015, arXiv:1502.01852, over the fan-out, as torchvision chooses.
_CONV_INIT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def _conv(
    inputs: int, outputs: int, size: int, stride: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.Conv:
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=size // 2,  # symmetric, as torch; "SAME" would shift strided convolutions
        use_bias=False,
        kernel_init=_CONV_INIT,
        dtype=dtype,
        rngs=rngs,
    )


class Block(nnx.Module):
    """Residual block: `conv`s with batch norm between them, added to a shortcut.

    "basic" is 3x3, 3x3; "bottleneck" is 1x1, 3x3, 1x1 with four times the channels at the end.
    """

    def __init__(
        self,
        kind: str,
        inputs: int,
        width: int,
        stride: int,
        *,
        zero_init: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        outputs = width * EXPANSION[kind]
        if kind == "basic":
            plan = [(inputs, width, 3, stride), (width, outputs, 3, 1)]
        else:
            plan = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        self.convs = nnx.List([_conv(*shape, dtype=dtype, rngs=rngs) for shape in plan])
        self.bns = nnx.List([BatchNorm(shape[1]) for shape in plan])
        if zero_init:  # the block starts as the identity: Goyal et al. 2017, arXiv:1706.02677
            self.bns[-1].scale[...] = jnp.zeros_like(self.bns[-1].scale[...])
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            self.downsample_conv = _conv(inputs, outputs, 1, stride, dtype=dtype, rngs=rngs)
            self.downsample_bn = BatchNorm(outputs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        shortcut = x
        if self.projects:
            shortcut = self.downsample_bn(self.downsample_conv(x), train=train)
        for conv, bn in zip(self.convs[:-1], self.bns[:-1], strict=True):
            x = nnx.relu(bn(conv(x), train=train))
        x = self.bns[-1](self.convs[-1](x), train=train)
        return nnx.relu(x + shortcut)


EXPANSION = {"basic": 1, "bottleneck": 4}


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
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        kind, depths = VARIANTS[name]
        channels = round(64 * width)
        self.dtype, self.small_stem = dtype, stem == "small"
        size, stride = (3, 1) if self.small_stem else (7, 2)
        self.conv1 = _conv(3, channels, size, stride, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(channels)
        inputs = channels
        stages = []
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                block_stride = 2 if i > 0 and j == 0 else 1
                blocks.append(
                    Block(
                        kind,
                        inputs,
                        channels * 2**i,
                        block_stride,
                        zero_init=zero_init_residual,
                        dtype=dtype,
                        rngs=rngs,
                    )
                )
                inputs = channels * 2**i * EXPANSION[kind]
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        # torch's default for linear layers: uniform within 1 / sqrt(inputs), the bias too.
        uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        bound = inputs**-0.5
        self.fc = nnx.Linear(
            inputs,
            num_classes,
            kernel_init=uniform,
            bias_init=lambda key, shape, dtype, **_: jax.random.uniform(
                key, shape, dtype, -bound, bound
            ),
            dtype=jnp.promote_types(dtype, jnp.float32),
            rngs=rngs,
        )

    def activations(self, images: jax.Array, *, train: bool) -> Iterator[tuple[str, jax.Array]]:
        """(name, value) of the stem, of each stage and of the logits, in order."""
        if min(images.shape[1:3]) < 1:
            raise UserError(f"images of {images.shape[1]}x{images.shape[2]} pixels are empty")
        x = self.conv1(images.astype(self.dtype))
        x = nnx.relu(self.bn1(x, train=train))
        if not self.small_stem:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        yield "stem", x
        for i, stage in enumerate(self.stages):
            for block in stage:
                x = block(x, train=train)
            yield f"layer{i + 1}", x
        # float32 from here: the mean over 7x7 and the logits are cheap and should not round.
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        yield "logits", self.fc(x)

    def __call__(
        self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """[B, H, W, 3] -> logits f32[B, num_classes]; `train` takes and moves batch statistics."""
        logits = images
        for _, logits in self.activations(images, train=train):
            pass
        return logits
