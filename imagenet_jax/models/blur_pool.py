"""Anti-aliased downsampling (Zhang 2019, arXiv:1904.11486): a low-pass filter at each stride.

Two published forms, both with the paper's Tri-3 filter, [1, 2, 1] / 4 in each direction:

    "zhang"  a 3x3 convolution, or the max-pool, keeps the resolution; its activations are filtered
             and subsampled together (equations 6 and 7), with the image mirrored at its edges
    "ffcv"   what a strided 3x3 convolution reads is filtered, with zeros beyond the edges; the
             max-pool is left alone (github.com/libffcv/ffcv-imagenet)

In both the shortcut is filtered before its 1x1 convolution and the 7x7 of the stem is left alone.
"""

import jax
import jax.numpy as jnp
import numpy as np

FORMS = ("none", "zhang", "ffcv")
TRIANGLE = np.array([1.0, 2.0, 1.0]) / 4


def own_stride(stride: int, form: str) -> int:
    """Of the layer that would stride by `stride` without the filter."""
    return 1 if form == "zhang" else stride


def before_stride(x: jax.Array, stride: int, form: str) -> jax.Array:
    """f[B, H, W, C] -> f[B, H, W, C]: what the layer that strides reads."""
    return blur_pool(x, stride=1, padding="zero") if form == "ffcv" and stride > 1 else x


def after_stride(x: jax.Array, stride: int, form: str) -> jax.Array:
    """f[B, H, W, C] -> f[B, h, w, C]: what follows the layer that would stride, activated."""
    return blur_pool(x, stride=stride, padding="reflect") if form == "zhang" and stride > 1 else x


def shortcut(x: jax.Array, stride: int, form: str) -> jax.Array:
    """f[B, H, W, C] -> f[B, h, w, C]: what a 1x1 convolution reads that then need not stride."""
    if form == "none" or stride == 1:
        return x
    return blur_pool(x, stride=stride, padding="reflect" if form == "zhang" else "zero")


def blur_pool(x: jax.Array, *, stride: int, padding: str) -> jax.Array:
    """f[B, H, W, C] -> f[B, ceil(H / stride), ceil(W / stride), C], each channel filtered alone.

    `padding` is "reflect" (without repeating the edge) or "zero".
    """
    mode = {"reflect": "reflect", "zero": "constant"}[padding]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)
    # Shifted slices are elementwise, so XLA fuses them with their neighbours; a depthwise
    # convolution it would not.
    for axis in (1, 2):
        last = (x.shape[axis] - 3) // stride * stride
        weighted = [
            float(weight) * jax.lax.slice_in_dim(x, i, i + last + 1, stride, axis=axis)
            for i, weight in enumerate(TRIANGLE)
        ]
        x = weighted[0] + weighted[1] + weighted[2]
    return x
