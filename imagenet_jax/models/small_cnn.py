"""A small convolutional network for images of 28x28 or 32x32 pixels, in NHWC.

The network of Flax's MNIST example (github.com/google/flax, examples/mnist/train.py), with its
initial weights, for color images. torchvision and timm do not have it; state dicts have the module
names of this file.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.models.base import Activations, Family, Model, count_outputs
from imagenet_jax.models.layers import adaptive_average_pool

CHANNELS = (32, 64)  # of the two convolutions
HIDDEN = 256
POOLED = 7  # side of the feature map that the hidden layer reads: 28 pixels, halved twice


class SmallCNN(Model):
    """Two 3x3 convolutions with 2x2 average pools, a hidden layer and a linear classifier."""

    def __init__(
        self, name: str, *, num_classes: int, width: float, dtype: jnp.dtype | None, rngs: nnx.Rngs,
    ):  # fmt: skip
        """`dtype` is the compute dtype of all but the last layer; None: that of the operands."""
        self.name = name
        first, second = (round(channels * width) for channels in CHANNELS)
        hidden = round(HIDDEN * width)
        conv = partial(nnx.Conv, kernel_size=(3, 3), dtype=dtype, rngs=rngs)
        self.conv1, self.conv2 = conv(3, first), conv(first, second)
        self.fc1 = nnx.Linear(second * POOLED**2, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, num_classes, rngs=rngs)  # logits are not rounded

    def activations(self, images: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> Activations:
        self.require_pixels(images, 4)
        x = images
        for i, conv in enumerate((self.conv1, self.conv2)):
            x = nnx.avg_pool(nnx.relu(self.run(conv, x)), (2, 2), strides=(2, 2))
            yield f"stage{i + 1}", x
        x = adaptive_average_pool(x, POOLED)
        x = nnx.relu(self.fc1(x.reshape(x.shape[0], -1)))
        yield "logits", self.fc2(x)


def identify(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the SmallCNN models that fit a state dict: see Family."""
    if {key.split(".")[0] for key in arrays} - {"fc2"} != {"conv1", "conv2", "fc1"}:
        return []
    return [{"name": "small_cnn", "width": count_outputs(arrays, "conv1.weight") / CHANNELS[0]}]


FAMILY = Family(
    model=SmallCNN,
    variants=("small_cnn",),
    fields={},
    groups=((("conv1",),), (("conv2",),), (("fc1",),), (("fc2",),)),
    first="conv1",
    identify=identify,
    flattened={("fc1",): POOLED},
)
