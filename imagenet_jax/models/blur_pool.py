"""Anti-aliased downsampling (Zhang 2019, arXiv:1904.11486), applied to a finished model.

As in github.com/libffcv/ffcv-imagenet, the inputs of strided convolutions pass through the Tri-3
filter of the paper, [1, 2, 1] / 4 in each direction, with zero padding. The first convolution and
max-pools stay as they are.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imagenet_jax.models.layers import PointwiseConv

TRIANGLE = np.array([1.0, 2.0, 1.0]) / 4


def blur_strided(model: nnx.Module) -> None:
    """Make each strided 1x1 or 3x3 convolution of `model` filter its input first."""
    for _, conv in nnx.iter_modules(model):
        if isinstance(conv, nnx.Conv) and conv.strides != 1 and max(conv.kernel_size) <= 3:
            if isinstance(conv, PointwiseConv):
                conv.subsample = blur_pool
            else:
                conv.conv_general_dilated = _blur_and_convolve


def _blur_and_convolve(
    x: jax.Array, kernel: jax.Array, window_strides: tuple[int, int], *args: Any, **options: Any
) -> jax.Array:
    """Return jax.lax.conv_general_dilated of the filtered `x`."""
    if kernel.shape[:2] == (1, 1):  # reads only the pixels that the stride keeps
        x, window_strides = blur_pool(x, stride=window_strides[0]), (1, 1)
    else:
        x = blur_pool(x)
    return jax.lax.conv_general_dilated(x, kernel, window_strides, *args, **options)


def blur_pool(x: jax.Array, *, stride: int = 1) -> jax.Array:
    """f[B, H, W, C] -> f[B, ceil(H / stride), ceil(W / stride), C]: filter each channel."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # XLA fuses shifted slices with neighboring operations, but not a depthwise convolution.
    for axis in (1, 2):
        last = (x.shape[axis] - 3) // stride * stride
        weighted = [
            float(weight) * jax.lax.slice_in_dim(x, i, i + last + 1, stride, axis=axis)
            for i, weight in enumerate(TRIANGLE)
        ]
        x = weighted[0] + weighted[1] + weighted[2]
    return x
