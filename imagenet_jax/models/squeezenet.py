"""SqueezeNet (Iandola et al. 2016, arXiv:1602.07360), versions 1.0 and 1.1.

Semantics, initial weights and module names follow torchvision.models.squeezenet; arrays are NHWC.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.models.base import Activations, Family, Model, Path, count_outputs
from imagenet_jax.models.layers import dropout_field
from imagenet_jax.models.windows import convolve, max_pool

POOL = "pool"  # 3x3 max-pool of stride 2 with ceil mode
# The first convolution (channels, kernel size), then Fire modules (squeeze channels, channels of
# each expand convolution).
VARIANTS: dict[str, tuple[Any, ...]] = {
    "squeezenet1_0": (
        (96, 7), POOL, (16, 64), (16, 64), (32, 128), POOL, (32, 128), (48, 192), (48, 192),
        (64, 256), POOL, (64, 256),
    ),
    "squeezenet1_1": (
        (64, 3), POOL, (16, 64), (16, 64), POOL, (32, 128), (32, 128), POOL, (48, 192), (48, 192),
        (64, 256), (64, 256),
    ),
}  # fmt: skip
MIN_SIDE = 17  # pixels; smaller images leave nothing for a max-pool


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, **options: Any) -> nnx.Conv:
    init = nnx.initializers.variance_scaling(2.0, "fan_in", "uniform")
    return nnx.Conv(
        inputs, outputs, (size, size), strides=stride, padding=(size // 2 if stride == 1 else 0),
        conv_general_dilated=convolve, **{"kernel_init": init} | options,
    )  # fmt: skip


class Fire(nnx.Module):
    """A 1x1 convolution to few channels, then a 1x1 and a 3x3 convolution in parallel."""

    def __init__(self, inputs: int, squeezed: int, expanded: int, **options: Any):
        self.squeeze = _conv(inputs, squeezed, 1, **options)
        self.expand1x1 = _conv(squeezed, expanded, 1, **options)
        self.expand3x3 = _conv(squeezed, expanded, 3, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[B, H, W, I] -> f[B, H, W, 2 * expanded]."""
        x = nnx.relu(self.squeeze(x))
        return nnx.relu(jnp.concatenate([self.expand1x1(x), self.expand3x3(x)], -1))


class SqueezeNet(Model):
    """A convolution, eight Fire modules with max-pools between, a 1x1 convolution to classes."""

    def __init__(
        self, name: str, *, num_classes: int, width: float, dropout: float, dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        """`dtype` is the compute dtype of all but the last layer; None: that of the operands."""
        self.name = name
        (first, size), *rest = VARIANTS[name]
        inputs = round(first * width)
        layers: list[Any] = [_conv(3, inputs, size, 2, dtype=dtype, rngs=rngs)]
        for entry in rest:
            if entry != POOL:
                squeezed, expanded = (round(channels * width) for channels in entry)
                layers.append(Fire(inputs, squeezed, expanded, dtype=dtype, rngs=rngs))
                inputs = 2 * expanded
        self.features: nnx.List[Any] = nnx.List(layers)
        self.dropout = nnx.Dropout(dropout)
        init = nnx.initializers.normal(0.01)
        self.classifier = _conv(inputs, num_classes, 1, kernel_init=init, rngs=rngs)

    def activations(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> Activations:
        self.require_pixels(images, MIN_SIDE)
        x, layers, pools = images, iter(self.features), 0
        for entry in VARIANTS[self.name]:
            if entry != POOL:
                x = nnx.relu(self.run(next(layers), x))
                continue
            pools += 1
            yield f"stage{pools}", x
            x = max_pool(x, 3, ceil=True)
        yield f"stage{pools + 1}", x
        # The classifier and the mean over pixels are cheap: compute them in float32.
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        x = self.dropout(x, deterministic=not train, rngs=rngs)
        yield "logits", jnp.mean(nnx.relu(self.classifier(x)), axis=(1, 2))


def _torch_name(name: str, path: Path) -> str:
    """Return torchvision's name, whose index counts pools and the first ReLU too."""
    part, *place = path
    if part == "classifier":
        return "classifier.1"
    numbers = [0, *(i + 1 for i, entry in enumerate(VARIANTS[name]) if i and entry != POOL)]
    return ".".join(["features", str(numbers[place[0]]), *place[1:]])


def identify(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the SqueezeNet models that fit a state dict: see Family."""
    kernel = arrays.get("features.0.weight")
    if kernel is None or "features.3.squeeze.weight" not in arrays:
        return []
    name = "squeezenet1_1" if kernel.shape[-1] == 3 else "squeezenet1_0"
    first, _ = VARIANTS[name][0]
    return [{"name": name, "width": count_outputs(arrays, "features.0.weight") / first}]


FAMILY = Family(
    model=SqueezeNet,
    variants=tuple(VARIANTS),
    fields={"dropout": dropout_field(0.5)},
    groups=(*((("features", i),) for i in range(9)), (("classifier",),)),
    first="features.0",
    identify=identify,
    torch_name=_torch_name,
)
