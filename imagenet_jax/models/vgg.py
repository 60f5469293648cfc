"""VGG (Simonyan & Zisserman 2014, arXiv:1409.1556), with and without batch norm.

Semantics and initial weights of torchvision.models.vgg, in NHWC.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.errors import UserError
from imagenet_jax.models.norm import BatchNorm

# name -> 3x3 convolutions in each of the five stages, which have these channels:
CHANNELS = (64, 128, 256, 512, 512)
_DEPTHS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2,) * 5, "vgg16": (2, 2, 3, 3, 3),
           "vgg19": (2, 2, 4, 4, 4)}  # fmt: skip
VARIANTS: dict[str, tuple[tuple[int, ...], bool]] = {
    name + suffix: (depths, suffix == "_bn")
    for name, depths in _DEPTHS.items()
    for suffix in ("", "_bn")
}
POOLED = 7  # side of the feature map that the classifier sees, whatever the image size


class VGG(nnx.Module):
    """Five stages of 3x3 convolutions with a max-pool after each, then three linear layers."""

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        width: float,
        dropout: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        depths, self.has_bn = VARIANTS[name]
        self.dtype = dtype
        convs, bns, inputs = [], [], 3
        for depth, channels in zip(depths, CHANNELS, strict=True):
            outputs = round(channels * width)
            stage = []
            for _ in range(depth):
                stage.append(
                    nnx.Conv(
                        inputs,
                        outputs,
                        (3, 3),
                        padding=1,
                        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
                        dtype=dtype,
                        rngs=rngs,
                    )
                )
                inputs = outputs
            convs.append(nnx.List(stage))
            bns.append(nnx.List([BatchNorm(outputs) for _ in stage] if self.has_bn else []))
        self.convs, self.bns = nnx.List(convs), nnx.List(bns)
        hidden = round(4096 * width)
        self.dropout = nnx.Dropout(dropout)
        sizes = (inputs * POOLED**2, hidden, hidden, num_classes)
        self.classifier = nnx.List(
            [
                nnx.Linear(
                    sizes[i],
                    sizes[i + 1],
                    kernel_init=nnx.initializers.normal(0.01),
                    dtype=dtype if i < 2 else jnp.promote_types(dtype, jnp.float32),
                    rngs=rngs,
                )
                for i in range(3)
            ]
        )

    def activations(
        self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None
    ) -> Iterator[tuple[str, jax.Array]]:
        """(name, value) of each stage after its pool and of the logits, in order."""
        if min(images.shape[1:3]) < 32:
            raise UserError(
                f"images of {images.shape[1]}x{images.shape[2]} pixels: VGG halves them five "
                "times and needs at least 32x32 (config.augment.image_size, eval.image_size)"
            )
        x = images.astype(self.dtype)
        for i, stage in enumerate(self.convs):
            for j, conv in enumerate(stage):
                x = conv(x)
                if self.has_bn:
                    x = self.bns[i][j](x, train=train)
                x = nnx.relu(x)
            x = nnx.max_pool(x, (2, 2), strides=(2, 2))
            yield f"stage{i + 1}", x
        x = adaptive_average_pool(x, POOLED)
        x = x.reshape(x.shape[0], -1)
        for linear in self.classifier[:-1]:
            x = nnx.relu(linear(x))
            x = self.dropout(x, deterministic=not train, rngs=rngs)
        yield "logits", self.classifier[-1](x)

    def __call__(
        self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """[B, H, W, 3] -> logits f32[B, num_classes]; dropout in training draws from `rngs`."""
        logits = images
        for _, logits in self.activations(images, train=train, rngs=rngs):
            pass
        return logits


def adaptive_average_pool(x: jax.Array, side: int) -> jax.Array:
    """[B, H, W, C] -> [B, side, side, C], torch's AdaptiveAvgPool2d.

    Output i averages input rows floor(i * H / side) up to ceil((i + 1) * H / side), exclusive.
    """
    if x.shape[1:3] == (side, side):
        return x
    rows, columns = (jnp.asarray(_bins(size, side), x.dtype) for size in x.shape[1:3])
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x, precision="highest")


def _bins(size: int, side: int) -> np.ndarray:
    """f64[side, size]: row i holds the weights of output i."""
    weights = np.zeros((side, size))
    for i in range(side):
        start, stop = i * size // side, -(-(i + 1) * size // side)
        weights[i, start:stop] = 1 / (stop - start)
    return weights
