"""Big Transfer (BiT, Kolesnikov et al. 2020, arXiv:1912.11370).

BiT is a ResNet v2 (pre-activation, He et al. 2016, arXiv:1603.05027) with group norm and weight
standardization, and so without batch statistics. As in github.com/google-research/big_transfer,
projection shortcuts read the activated input, the stride is in the 3x3 convolution, group norm has
32 groups and epsilon 1e-5, weight standardization has epsilon 1e-10, and the stem has no norm and a
max-pool with zero padding. Module names follow timm's resnetv2_*_bit; arrays are NHWC.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.models.base import Activations, Family, Model, count_blocks, count_outputs
from imagenet_jax.models.layers import StandardizedConv, global_average_pool
from imagenet_jax.models.norms import GroupNorm
from imagenet_jax.models.windows import max_pool

# name -> (blocks in each of the four stages, factor on ResNet's channels)
VARIANTS: dict[str, tuple[tuple[int, ...], int]] = {
    "bit_r50x1": ((3, 4, 6, 3), 1),
    "bit_r50x3": ((3, 4, 6, 3), 3),
    "bit_r101x1": ((3, 4, 23, 3), 1),
    "bit_r101x3": ((3, 4, 23, 3), 3),
    "bit_r152x2": ((3, 8, 36, 3), 2),
    "bit_r152x4": ((3, 8, 36, 3), 4),
}


class BiT(Model):
    """Stem, four stages of pre-activation blocks, norm, global average pool, linear classifier."""

    def __init__(
        self, name: str, *, num_classes: int, width: float, dtype: jnp.dtype | None, rngs: nnx.Rngs,
    ):  # fmt: skip
        """`dtype` is the compute dtype of convolutions; None: that of images and parameters."""
        self.name = name
        depths, factor = VARIANTS[name]
        base = inputs = round(64 * factor * width)
        self.stem = nnx.Dict(conv=_conv(3, base, 7, 2, dtype=dtype, rngs=rngs))
        stages = []
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(PreActivation(inputs, base * 2**i, stride, dtype=dtype, rngs=rngs))
                inputs = base * 2**i * PreActivation.expansion
            stages.append(nnx.Dict(blocks=nnx.List(blocks)))
        self.stages = nnx.List(stages)
        self.norm = GroupNorm(inputs)
        # A 1x1 convolution, so that the kernel has timm's shape. It starts at zero, as in BiT.
        zeros = nnx.initializers.zeros_init()
        fc = nnx.Conv(inputs, num_classes, (1, 1), kernel_init=zeros, rngs=rngs)
        self.head = nnx.Dict(fc=fc)

    def activations(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> Activations:
        self.require_pixels(images, 1)
        x = jnp.pad(self.stem["conv"](images), ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = max_pool(x, 3)
        yield "stem", x
        for i, stage in enumerate(self.stages):
            for block in stage["blocks"]:
                x = self.run(block, x)
            yield f"stage{i + 1}", x
        x = nnx.relu(self.norm(x))
        yield "logits", self.head["fc"](global_average_pool(x, keepdims=True))[:, 0, 0]


class PreActivation(nnx.Module):
    """A bottleneck with norm and ReLU before each convolution, and a shortcut."""

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
        conv = partial(_conv, dtype=dtype, rngs=rngs)
        self.norm1 = GroupNorm(inputs)
        self.conv1 = conv(inputs, features, 1, 1)
        self.norm2 = GroupNorm(features)
        self.conv2 = conv(features, features, 3, stride)
        self.norm3 = GroupNorm(features)
        self.conv3 = conv(features, outputs, 1, 1)
        changes_shape = stride > 1 or inputs != outputs
        self.downsample = nnx.Dict(conv=conv(inputs, outputs, 1, stride)) if changes_shape else None

    def __call__(self, x: jax.Array) -> jax.Array:
        active = nnx.relu(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample["conv"](active)
        y = nnx.relu(self.norm2(self.conv1(active)))
        y = nnx.relu(self.norm3(self.conv2(y)))
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
        # Standardization removes the scale, which only sets the effective learning rate.
        kernel_init=nnx.initializers.lecun_normal(),
        dtype=dtype,
        rngs=rngs,
    )


def identify(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the BiT models that fit a state dict: see Family.

    A wider variant and a narrower one with a larger `width` have the same keys and shapes.
    """
    depths = count_blocks(arrays, r"stages\.(\d+)\.blocks\.(\d+)\.")
    channels = count_outputs(arrays, "stem.conv.weight")
    return [
        {"name": name, "width": channels / (64 * factor)}
        for name, (known_depths, factor) in VARIANTS.items()
        if known_depths == depths and channels
    ]


FAMILY = Family(
    model=BiT,
    variants=tuple(VARIANTS),
    fields={},
    groups=(
        (("stem",),),
        *((("stages", i),) for i in (0, 1, 2)),
        (("stages", 3), ("norm",)),
        (("head", "fc"),),
    ),
    first="stem.conv",
    identify=identify,
)
