"""AlexNet, in the version of "One weird trick" (Krizhevsky 2014, arXiv:1404.5997).

Semantics, initial weights and module names follow torchvision.models.alexnet; arrays are NHWC.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.config.fields import Field
from imagenet_jax.models.base import Activations, Family, Model, Path, count_outputs
from imagenet_jax.models.layers import (
    adaptive_average_pool,
    three_linear,
    uniform_conv,
    uniform_linear,
)
from imagenet_jax.models.windows import max_pool

# Output channels, kernel size, stride and padding of each convolution.
CONVOLUTIONS = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
POOL_AFTER = (0, 1, 4)  # convolutions before a 3x3 max-pool of stride 2
HIDDEN = 4096  # units of each of the two hidden linear layers
POOLED = 6  # side of the feature map that the classifier reads, for every image size
MIN_SIDE = 63  # pixels; smaller images leave nothing for the last max-pool

# Indices in torchvision's nn.Sequential, which also count ReLU, pooling and dropout layers.
_FEATURES, _CLASSIFIER = (0, 3, 6, 8, 10), (1, 4, 6)


class AlexNet(Model):
    """Five convolutions, three of them followed by a max-pool, and three linear layers."""

    def __init__(
        self, name: str, *, num_classes: int, width: float, dropout: float, dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        """`dtype` is the compute dtype of all but the last layer; None: that of the operands."""
        self.name = name
        convolutions, inputs = [], 3
        for channels, size, stride, padding in CONVOLUTIONS:
            outputs = round(channels * width)
            convolutions.append(
                uniform_conv(inputs, outputs, size, stride, padding, dtype=dtype, rngs=rngs)
            )
            inputs = outputs
        self.features: nnx.List[Any] = nnx.List(convolutions)
        hidden = round(HIDDEN * width)
        linear = partial(uniform_linear, rngs=rngs)
        self.classifier = three_linear(linear, inputs * POOLED**2, hidden, num_classes, dtype)
        self.dropout = nnx.Dropout(dropout)

    def activations(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> Activations:
        self.require_pixels(images, MIN_SIDE)
        x = images
        for i, conv in enumerate(self.features):
            x = nnx.relu(self.run(conv, x))
            if i in POOL_AFTER:
                x = max_pool(x, 3)
            yield f"conv{i + 1}", x
        x = adaptive_average_pool(x, POOLED)
        x = x.reshape(x.shape[0], -1)
        for linear in self.classifier[:-1]:
            x = nnx.relu(linear(self.dropout(x, deterministic=not train, rngs=rngs)))
        yield "logits", self.classifier[-1](x)


def _torch_name(name: str, path: Path) -> str:
    part, index = path
    return f"{part}.{(_FEATURES if part == 'features' else _CLASSIFIER)[index]}"


def identify(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the AlexNet models that fit a state dict: see Family."""
    kernel = arrays.get("features.0.weight")
    if kernel is None or kernel.shape[2:] != (11, 11):
        return []
    return [{"name": "alexnet", "width": count_outputs(arrays, "features.0.weight") / 64}]


FAMILY = Family(
    model=AlexNet,
    variants=("alexnet",),
    fields={
        "dropout": Field(
            0.5, "Dropout rate before each of the two hidden linear layers", at_least=0, below=1
        )
    },
    groups=(
        *((("features", i),) for i in range(len(CONVOLUTIONS))),
        *((("classifier", i),) for i in range(3)),
    ),
    first="features.0",
    identify=identify,
    torch_name=_torch_name,
    flattened={("classifier", 0): POOLED},
)
