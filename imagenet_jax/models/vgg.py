"""VGG (Simonyan & Zisserman 2014, arXiv:1409.1556), with and without batch norm.

Semantics and initial weights of torchvision.models.vgg, in NHWC.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.config.fields import Field
from imagenet_jax.errors import UserError
from imagenet_jax.models.norm import BatchNorm

CHANNELS = (64, 128, 256, 512, 512)  # of the five stages
HIDDEN = 4096  # of the two hidden linear layers
POOLED = 7  # side of the feature map that the classifier sees, whatever the image size

_DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
# name -> (3x3 convolutions in each of the five stages, whether batch norm follows each)
VARIANTS: dict[str, tuple[tuple[int, ...], bool]] = {
    name + suffix: (depths, suffix == "_bn")
    for name, depths in _DEPTHS.items()
    for suffix in ("", "_bn")
}
HEAD = ("classifier", 2)  # the last linear layer among the parameters
# Where they lie from input to output, for learning rates by depth; the last is the head.
GROUPS = (
    *((("features", i),) for i in range(len(CHANNELS))),
    *((("classifier", i),) for i in (0, 1)),
    (HEAD,),
)
FIELDS = {
    "dropout": Field(
        0.5, "Dropout rate after each of the two hidden linear layers", at_least=0, below=1
    ),
    "bn_group": Field(
        0, "Images that batch norm sees together in training; 0: the whole batch", at_least=0,
        read_by={"model.name": tuple(name for name, (_, has_bn) in VARIANTS.items() if has_bn)},
    ),
}  # fmt: skip


class VGG(nnx.Module):
    """Five stages of 3x3 convolutions with a max-pool after each, then three linear layers."""

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        width: float,
        dropout: float,
        bn_group: int,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        """`dtype` is the compute dtype of all but the last layer; None: that of the operands."""
        depths, has_bn = VARIANTS[name]
        stages, inputs = [], 3
        for depth, channels in zip(depths, CHANNELS, strict=True):
            outputs, stage = round(channels * width), []
            for _ in range(depth):
                bn = BatchNorm(outputs, images_per_group=bn_group) if has_bn else None
                stage.append(ConvUnit(inputs, outputs, bn=bn, dtype=dtype, rngs=rngs))
                inputs = outputs
            stages.append(nnx.List(stage))
        self.features = nnx.List(stages)
        hidden = round(HIDDEN * width)
        self.classifier = nnx.List(
            [
                _linear(inputs * POOLED**2, hidden, dtype=dtype, rngs=rngs),
                _linear(hidden, hidden, dtype=dtype, rngs=rngs),
                _linear(hidden, num_classes, dtype=None, rngs=rngs),  # logits are not rounded
            ]
        )
        self.dropout = nnx.Dropout(dropout)

    def activations(
        self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None
    ) -> Iterator[tuple[str, jax.Array]]:
        """(name, value) of each stage after its pool and of the logits, in order."""
        if min(images.shape[1:3]) < 32:
            raise UserError(
                f"images of {images.shape[1]}x{images.shape[2]} pixels: VGG halves them five "
                "times and needs at least 32x32 (config.augment.image_size, eval.image_size)"
            )
        x = images
        for i, stage in enumerate(self.features):
            for unit in stage:
                x = unit(x, train=train)
            x = nnx.max_pool(x, (2, 2), strides=(2, 2))
            yield f"stage{i + 1}", x
        x = adaptive_average_pool(x, POOLED)
        x = x.reshape(x.shape[0], -1)
        for linear in self.classifier[:-1]:
            x = self.dropout(nnx.relu(linear(x)), deterministic=not train, rngs=rngs)
        yield "logits", self.classifier[-1](x)

    def __call__(
        self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """f[B, H, W, 3] -> logits f32[B, num_classes].

        `train` normalises with, and moves, batch statistics, and drops hidden units by draws from
        `rngs.dropout`, which must be given unless the rate is 0.
        Raises UserError for images below 32x32.
        """
        *_, (_, logits) = self.activations(images, train=train, rngs=rngs)
        return logits


class ConvUnit(nnx.Module):
    """3x3 convolution with a bias, batch norm in the variants that have it, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bn: BatchNorm | None,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (3, 3),
            padding=1,
            # He et al. 2015, arXiv:1502.01852, over the fan-out, as torchvision chooses.
            kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
            dtype=dtype,
            rngs=rngs,
        )
        self.bn = bn

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x, train=train)
        return nnx.relu(x)


def _linear(inputs: int, outputs: int, *, dtype: jnp.dtype | None, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        inputs, outputs, kernel_init=nnx.initializers.normal(0.01), dtype=dtype, rngs=rngs
    )


def adaptive_average_pool(x: jax.Array, side: int) -> jax.Array:
    """f[B, H, W, C] -> f[B, side, side, C], torch's AdaptiveAvgPool2d.

    Output i averages input rows floor(i * H / side) up to ceil((i + 1) * H / side), exclusive;
    columns likewise. Sums are in float32 at least.
    """
    if x.shape[1:3] == (side, side):
        return x
    wide = jnp.promote_types(x.dtype, jnp.float32)
    rows, columns = (jnp.asarray(_bins(size, side), wide) for size in x.shape[1:3])
    pooled = jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x.astype(wide), precision="highest")
    return pooled.astype(x.dtype)


def _bins(size: int, side: int) -> np.ndarray:
    """f64[side, size]: row i holds the weights of output i."""
    weights = np.zeros((side, size))
    for i in range(side):
        start, stop = i * size // side, -(-(i + 1) * size // side)
        weights[i, start:stop] = 1 / (stop - start)
    return weights
