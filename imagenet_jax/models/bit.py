"""Big Transfer ResNets (Kolesnikov et al. 2020, arXiv:1912.11370): ResNet-v2 with group norm and
weight standardisation, no batch statistics.

Pre-activation blocks (He et al. 2016, arXiv:1603.05027) whose shortcuts read the activated input,
the stride on the 3x3, and, as in github.com/google-research/big_transfer: 32 groups and epsilon
1e-5 in group norm, 1e-10 in weight standardisation, a max-pool padded with zeros after a stem
without norm. Module names are those of timm's resnetv2_*_bit, whose state dicts have this layout.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from imagenet_jax.config.fields import Field
from imagenet_jax.errors import UserError
from imagenet_jax.models.norm import GroupNorm
from imagenet_jax.models.weight_standardization import StandardizedConv

# name -> (blocks in each of the four stages, the factor on ResNet's channels)
VARIANTS: dict[str, tuple[tuple[int, int, int, int], int]] = {
    "bit_r50x1": ((3, 4, 6, 3), 1),
    "bit_r50x3": ((3, 4, 6, 3), 3),
    "bit_r101x1": ((3, 4, 23, 3), 1),
    "bit_r101x3": ((3, 4, 23, 3), 3),
    "bit_r152x2": ((3, 8, 36, 3), 2),
    "bit_r152x4": ((3, 8, 36, 3), 4),
}
HEAD = ("head", "fc")  # the last linear layer among the parameters
# Where they lie from input to output, for learning rates by depth; the last is the head.
GROUPS = (
    (("stem",),),
    *((("stages", i),) for i in (0, 1, 2)),
    (("stages", 3), ("norm",)),
    (HEAD,),
)
FIELDS: dict[str, Field] = {}


class BiT(nnx.Module):
    """Stem, four stages of pre-activation blocks, norm, global average pool, linear classifier."""

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        width: float,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        """`dtype` is the compute dtype of convolutions; None: that of images and parameters."""
        depths, factor = VARIANTS[name]
        base = round(64 * factor * width)
        self.stem = nnx.Dict(conv=_conv(3, base, 7, 2, dtype=dtype, rngs=rngs))
        stages, inputs = [], base
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(PreActivation(inputs, base * 2**i, stride, dtype=dtype, rngs=rngs))
                inputs = base * 2**i * PreActivation.expansion
            stages.append(nnx.Dict(blocks=nnx.List(blocks)))
        self.stages = nnx.List(stages)
        self.norm = GroupNorm(inputs)
        # A 1x1 convolution, so that the kernel has timm's shape. Zeros: all classes alike at first.
        zeros = nnx.initializers.zeros_init()
        fc = nnx.Conv(inputs, num_classes, (1, 1), kernel_init=zeros, rngs=rngs)
        self.head = nnx.Dict(fc=fc)

    def activations(
        self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None
    ) -> Iterator[tuple[str, jax.Array]]:
        """(name, value) of the stem, of each stage and of the logits, in order."""
        if min(images.shape[1:3]) < 1:
            raise UserError(f"images of {images.shape[1]}x{images.shape[2]} pixels are empty")
        x = jnp.pad(self.stem["conv"](images), ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2))
        yield "stem", x
        for i, stage in enumerate(self.stages):
            for block in stage["blocks"]:
                x = block(x, train=train)
            yield f"stage{i + 1}", x
        x = nnx.relu(self.norm(x, train=train))
        # float32 from here: the mean over 7x7 and the logits are cheap and should not round.
        wide = jnp.promote_types(x.dtype, jnp.float32)
        x = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=wide)
        yield "logits", self.head["fc"](x)[:, 0, 0]

    def __call__(
        self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """f[B, H, W, 3] -> logits f32[B, num_classes].

        Training and evaluation are alike, and nothing is drawn from `rngs`.
        Raises UserError for empty images.
        """
        *_, (_, logits) = self.activations(images, train=train, rngs=rngs)
        return logits


class PreActivation(nnx.Module):
    """Norm and ReLU before each of 1x1, 3x3, 1x1; added to the input or a 1x1 of its activation."""

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
        self.norm1 = GroupNorm(inputs)
        self.conv1 = _conv(inputs, features, 1, 1, dtype=dtype, rngs=rngs)
        self.norm2 = GroupNorm(features)
        self.conv2 = _conv(features, features, 3, stride, dtype=dtype, rngs=rngs)
        self.norm3 = GroupNorm(features)
        self.conv3 = _conv(features, outputs, 1, 1, dtype=dtype, rngs=rngs)
        changes = stride > 1 or inputs != outputs
        self.downsample = (
            nnx.Dict(conv=_conv(inputs, outputs, 1, stride, dtype=dtype, rngs=rngs))
            if changes
            else None
        )

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        active = nnx.relu(self.norm1(x, train=train))
        shortcut = x if self.downsample is None else self.downsample["conv"](active)
        y = nnx.relu(self.norm2(self.conv1(active), train=train))
        y = nnx.relu(self.norm3(self.conv2(y), train=train))
        return self.conv3(y) + shortcut


def _conv(
    inputs: int, outputs: int, size: int, stride: int, *, dtype: jnp.dtype | None, rngs: nnx.Rngs
) -> StandardizedConv:
    return StandardizedConv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        # Standardisation undoes the scale, which then only sets the effective learning rate.
        kernel_init=nnx.initializers.lecun_normal(),
        dtype=dtype,
        rngs=rngs,
    )
