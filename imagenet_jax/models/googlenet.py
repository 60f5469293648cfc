"""GoogLeNet (Szegedy et al. 2014, arXiv:1409.4842) with batch norm and two auxiliary heads.

Semantics, initial weights and module names follow torchvision.models.googlenet; arrays are NHWC.
The 5x5 convolutions of the paper are 3x3, as in the TensorFlow weights that torchvision converted.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.config.fields import Field
from imagenet_jax.models.base import Activations, Family, Model, Path, count_outputs
from imagenet_jax.models.layers import (
    BN_GROUP,
    ConvNorm,
    adaptive_average_pool,
    dropout_field,
    global_average_pool,
    uniform_linear,
)
from imagenet_jax.models.norms import Pool
from imagenet_jax.models.windows import max_pool

STEM = 64  # channels of the first convolution
# Output channels of the convolutions in the four branches of each block (table 1): 1x1, (1x1, 3x3),
# (1x1, "5x5"), 1x1 after a max-pool. A max-pool follows stages 3 and 4.
STAGES = {
    "inception3": {"a": (64, 96, 128, 16, 32, 32), "b": (128, 128, 192, 32, 96, 64)},
    "inception4": {
        "a": (192, 96, 208, 16, 48, 64), "b": (160, 112, 224, 24, 64, 64),
        "c": (128, 128, 256, 24, 64, 64), "d": (112, 144, 288, 32, 64, 64),
        "e": (256, 160, 320, 32, 128, 128),
    },
    "inception5": {"a": (256, 160, 320, 32, 128, 128), "b": (384, 192, 384, 48, 128, 128)},
}  # fmt: skip
POOLS = {"inception3": 3, "inception4": 2}  # window of the max-pool after a stage
HEADS = {"inception4a": "aux1", "inception4d": "aux2"}  # auxiliary heads, by the block they read
POOLED = 4  # side of the feature map that an auxiliary head reads, for every image size
MIN_SIDE = 15  # pixels; smaller images leave nothing for the third max-pool
# torchvision truncates the normal distribution at 2, which is 200 standard deviations.
INIT = nnx.initializers.normal(0.01)


class ConvBlock(nnx.Module):
    """A convolution, batch norm with TensorFlow's epsilon, and ReLU."""

    def __init__(self, *args: Any, **options: Any):
        """Arguments are those of ConvNorm.make."""
        self.conv, self.bn = ConvNorm.make(*args, eps=1e-3, **options)

    def __call__(self, x: jax.Array, *, train: bool, max_pool: Pool | None = None) -> jax.Array:
        """f[B, H, W, I] -> f[B, h, w, O]; `max_pool` is that of ConvNorm."""
        return ConvNorm(self.conv, self.bn)(x, train=train, max_pool=max_pool)


def scaled(channels: int, width: float) -> int:
    """Return `channels` times `width`, rounded to an integer, at least 1."""
    return max(1, round(channels * width))


class Inception(nnx.Module):
    """Four parallel branches: 1x1; 1x1 then 3x3; 1x1 then 3x3; max-pool then 1x1."""

    def __init__(self, inputs: int, channels: list[int], make: Callable[..., ConvBlock]):
        one, narrow, three, narrower, five, pooled = channels
        self.branch1 = make(inputs, one, 1)
        self.branch2 = nnx.List([make(inputs, narrow, 1), make(narrow, three, 3)])
        self.branch3 = nnx.List([make(inputs, narrower, 1), make(narrower, five, 3)])
        self.branch4 = make(inputs, pooled, 1)
        self.outputs = one + three + five + pooled

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """f[B, H, W, I] -> f[B, H, W, outputs]."""
        branches = [self.branch1(x, train=train)]
        for narrow, wide in (self.branch2, self.branch3):
            branches.append(wide(narrow(x, train=train), train=train))
        pooled = max_pool(x, 3, 1, padding=1)
        return jnp.concatenate([*branches, self.branch4(pooled, train=train)], -1)


class Auxiliary(nnx.Module):
    """An auxiliary head, used in training: average pool, 1x1 convolution, two linear layers."""

    def __init__(
        self,
        inputs: int,
        num_classes: int,
        *,
        width: float,
        dropout: float,
        make: Callable[..., ConvBlock],
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        channels, hidden = scaled(128, width), scaled(1024, width)
        linear = partial(uniform_linear, kernel_init=INIT, rngs=rngs)
        self.conv = make(inputs, channels, 1)
        self.fc1 = linear(channels * POOLED**2, hidden, dtype=dtype)
        self.dropout = nnx.Dropout(dropout)
        self.fc2 = linear(hidden, num_classes)

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """f[B, H, W, I] -> logits f32[B, num_classes]."""
        x = self.conv(adaptive_average_pool(x, POOLED), train=train)
        x = nnx.relu(self.fc1(x.reshape(x.shape[0], -1)))
        return self.fc2(self.dropout(x, deterministic=not train, rngs=rngs))


class GoogLeNet(Model):
    """Three convolutions, nine Inception blocks with max-pools between, pool, linear classifier."""

    def __init__(
        self, name: str, *, num_classes: int, width: float, aux_weight: float, dropout: float,
        aux_dropout: float, bn_group: int, dtype: jnp.dtype | None, rngs: nnx.Rngs,
    ):  # fmt: skip
        """`dtype` is the compute dtype of all but the last layers; None: that of the operands."""
        self.name, self.aux_weight = name, aux_weight
        make = partial(ConvBlock, bn_group=bn_group, kernel_init=INIT, dtype=dtype, rngs=rngs)
        stem, inputs = scaled(STEM, width), scaled(192, width)
        self.conv1 = make(3, stem, 7, 2)
        self.conv2 = make(stem, stem, 1)
        self.conv3 = make(stem, inputs, 3)
        for stage, blocks in STAGES.items():
            for letter, channels in blocks.items():
                block = Inception(inputs, [scaled(c, width) for c in channels], make)
                setattr(self, stage + letter, block)
                inputs = block.outputs
                if aux_weight and (head := HEADS.get(stage + letter)):
                    auxiliary = Auxiliary(
                        inputs, num_classes, width=width, dropout=aux_dropout, make=make,
                        dtype=dtype, rngs=rngs,
                    )  # fmt: skip
                    setattr(self, head, auxiliary)
        self.dropout = nnx.Dropout(dropout)
        self.fc = uniform_linear(inputs, num_classes, kernel_init=INIT, rngs=rngs)

    def activations(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> Activations:
        self.require_pixels(images, MIN_SIDE)
        pool = partial(max_pool, window=3, ceil=True)
        x = self.conv1(images, train=train, max_pool=pool)
        x = self.conv3(self.conv2(x, train=train), train=train, max_pool=pool)
        yield "stem", x
        for stage, blocks in STAGES.items():
            for letter in blocks:
                x = self.run(getattr(self, stage + letter), x, train=train)
                if train and self.aux_weight and (head := HEADS.get(stage + letter)):
                    yield head, self.run(getattr(self, head), x, train=train, rngs=rngs)
            yield stage, x
            if stage in POOLS:
                x = max_pool(x, POOLS[stage], ceil=True)
        x = global_average_pool(x)
        x = self.dropout(x, deterministic=not train, rngs=rngs)
        yield "logits", self.fc(x)


def _torch_name(name: str, path: Path) -> str:
    """Return torchvision's name; it counts the max-pool of the fourth branch as a layer."""
    return ".".join(map(str, path)).replace("branch4", "branch4.1")


def identify(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the GoogLeNet models that fit a state dict: see Family."""
    if "inception3a.branch1.conv.weight" not in arrays:
        return []
    found = {"name": "googlenet", "width": count_outputs(arrays, "conv1.conv.weight") / STEM}
    return [found if "aux1.fc2.weight" in arrays else {**found, "aux_weight": 0.0}]


AUXILIARY: tuple[Path, ...] = tuple((head,) for head in HEADS.values())
FAMILY = Family(
    model=GoogLeNet,
    variants=("googlenet",),
    fields={
        "aux_weight": Field(
            0.3, "Factor of the losses of the auxiliary heads; 0: a model without them", at_least=0
        ),
        "dropout": dropout_field(0.2),
        "aux_dropout": Field(
            0.7, "Dropout rate before the last layer of an auxiliary head", at_least=0, below=1
        ),
        "bn_group": BN_GROUP,
    },
    groups=(
        (("conv1",), ("conv2",), ("conv3",)),
        *(tuple((stage + letter,) for letter in blocks) for stage, blocks in STAGES.items()),
        (("fc",), *AUXILIARY),
    ),
    first="conv1.conv",
    identify=identify,
    torch_name=_torch_name,
    flattened={(*head, "fc1"): POOLED for head in AUXILIARY},
    auxiliary=AUXILIARY,
)
