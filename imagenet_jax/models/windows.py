"""Convolution and max pooling, with faster algorithms on GPUs where XLA's kernels are slow.

A step of ResNet-50 on an H100 spent 13 % of its time in two operations with slow kernels: the
convolution of the image, whose 3 channels do not fill tensor cores, and the gradient of max
pooling, a scatter (benchmarks/RESULTS.md). The results equal XLA's up to the order of sums.
"""

import functools
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_FEW_CHANNELS = 3  # those of RGB images
_ALIGNED = 8  # fast cuDNN kernels read 16 bytes at a time: 8 channels of 16 bits
Pads = tuple[tuple[int, int], tuple[int, int]]


def convolve(
    images: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """Return `lax.conv_general_dilated` of the same arguments; an argument for `nnx.Conv`.

    On NVIDIA GPUs, strided convolutions of at most 3 channels are computed by `convolve_blocks`.

    Args:
      images: f[B, H, W, I].
      kernel: f[h, w, I, O].
    """

    def plain(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(images, kernel, window_strides, padding, **options)

    grouped = kernel.shape[2] != images.shape[-1]
    if grouped or images.shape[-1] > _FEW_CHANNELS or min(window_strides) == 1:
        return plain(images, kernel)
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], window_strides, padding)
    else:
        pads = list(padding)

    def blocks(images: jax.Array, kernel: jax.Array) -> jax.Array:
        rows, columns = window_strides
        return convolve_blocks(images, kernel, (rows, columns), (pads[0], pads[1]))

    return lax.platform_dependent(images, kernel, cuda=blocks, default=plain)


def convolve_blocks(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> jax.Array:
    """Return a strided convolution, computed with stride 1 after space-to-depth.

    The pixels of each block of `strides` become channels. At stride 2, 3 channels become 12, and a
    7x7 kernel becomes 4x4, padded with zeros. Zeros fill the channels up to a multiple of 8.

    Args:
      images: f[B, H, W, I].
      kernel: f[h, w, I, O].
      strides: vertical and horizontal.
      pads: pixels of zeros before and after the rows, and the columns.
    """
    rows, columns = strides
    image_pads, kernel_pads, block_pads = [], [], []
    for stride, (before, after), side, width in zip(
        strides, pads, images.shape[1:3], kernel.shape[:2], strict=True
    ):
        outputs = (side + before + after - width) // stride + 1
        first = -(-before // stride)  # blocks of padding before the image
        shift = first * stride - before
        blocks, kernel_blocks = -(-side // stride), -(-(shift + width) // stride)
        image_pads.append((0, blocks * stride - side))
        kernel_pads.append((shift, kernel_blocks * stride - shift - width))
        block_pads.append((first, outputs - 1 + kernel_blocks - first - blocks))
    images = jnp.pad(images, ((0, 0), *image_pads, (0, 0)))
    kernel = jnp.pad(kernel, (*kernel_pads, (0, 0), (0, 0)))

    def to_channels(x: jax.Array) -> jax.Array:
        """f[N, H, W, C] -> f[N, H / rows, W / columns, rows * columns * C], plus zero channels."""
        n, height, width, channels = x.shape
        x = x.reshape(n, height // rows, rows, width // columns, columns, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, height // rows, width // columns, -1)
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, -x.shape[-1] % _ALIGNED)))

    kernel = to_channels(jnp.moveaxis(kernel, -1, 0))
    layout = ("NHWC", "OHWI", "NHWC")
    return lax.conv_general_dilated(
        to_channels(images), kernel, (1, 1), block_pads, dimension_numbers=layout
    )


def max_pool(
    x: jax.Array, window: int, stride: int = 2, padding: int = 0, *, ceil: bool = False
) -> jax.Array:
    """f[B, H, W, C] -> f[B, h, w, C]: the maximum over windows of `window` x `window` pixels.

    The gradient goes to the first of equal pixels, as in torch.

    Args:
      padding: pixels on each side that are never the maximum.
      ceil: whether a last window that extends beyond the image covers the remaining pixels, as
        with torch's ceil_mode.
    """
    rests = [(side + 2 * padding - window) % stride for side in x.shape[1:3]]
    rows, columns = ((padding, padding + (-rest % stride if ceil else 0)) for rest in rests)

    def plain(x: jax.Array) -> jax.Array:
        return _reduce_window(x, window, stride, (rows, columns))

    def tracked(x: jax.Array) -> jax.Array:
        return max_pool_tracked(x, window, stride, (rows, columns))

    if x.dtype.itemsize > 2:
        return plain(x)
    return lax.platform_dependent(x, cuda=tracked, default=plain)


def _reduce_window(x: jax.Array, window: int, stride: int, pads: Pads) -> jax.Array:
    sizes, strides = (1, window, window, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, sizes, strides, ((0, 0), *pads, (0, 0)))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool_tracked(x: jax.Array, window: int, stride: int, pads: Pads) -> jax.Array:
    """Return the max pool of x, a bfloat16 or float16 array; `pads` are those of `convolve_blocks`.

    The forward pass stores the position of each maximum for the backward pass.
    """
    return _reduce_window(x, window, stride, pads)


def _max_pool_forward(
    x: jax.Array, window: int, stride: int, pads: Pads
) -> tuple[jax.Array, tuple[jax.Array, tuple[int, ...]]]:
    """Return (pooled, (position u8[B, h, w, C] of each maximum in its window, shape of x))."""
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    height, width = ((side - window) // stride for side in padded.shape[1:3])
    places = itertools.product(range(window), repeat=2)
    # One maximum finds both value and position: it is taken over integers whose high bits order the
    # pixels, and whose low bits prefer the first position.
    last = window**2 - 1
    keys = [
        _ordered(
            padded[
                :,
                row : row + stride * height + 1 : stride,
                column : column + stride * width + 1 : stride,
            ]
        )
        * (last + 1)
        + (last - i)
        for i, (row, column) in enumerate(places)
    ]
    best = functools.reduce(jnp.maximum, keys)
    order = best // (last + 1)
    pooled = lax.bitcast_convert_type(_flip(order).astype(jnp.int16), x.dtype)
    return pooled, ((last - best % (last + 1)).astype(jnp.uint8), x.shape)


def _ordered(x: jax.Array) -> jax.Array:
    """Return s32 integers that are ordered like the 16-bit floating-point numbers in x."""
    return _flip(lax.bitcast_convert_type(x, jnp.int16).astype(jnp.int32))


def _flip(bits: jax.Array) -> jax.Array:
    """Reverse the order of negative numbers, which IEEE 754 stores as sign and magnitude."""
    return bits ^ ((bits >> 31) & 0x7FFF)


def _max_pool_backward(
    window: int,
    stride: int,
    pads: Pads,
    tracked: tuple[jax.Array, tuple[int, ...]],
    gradient: jax.Array,
) -> tuple[jax.Array]:
    """Return the gradient of x: each pixel gathers from the windows that contain it."""
    place, (images, height, width, channels) = tracked
    wide = gradient.astype(jnp.float32)
    # Divide the padded image into blocks of `stride` x `stride` pixels. A pixel is in windows that
    # start at its block or `back` blocks before it.
    blocks = [-(-(side + sum(p)) // stride) for side, p in zip((height, width), pads, strict=True)]

    def at(row: int, column: int) -> jax.Array:
        """Return f[B, blocks, blocks, C]: the gradient of the pixel at this position of a block."""
        total = jnp.zeros((), jnp.float32)
        for down in range(row, window, stride):
            for right in range(column, window, stride):
                part = jnp.where(place == down * window + right, wide, 0)
                back = ((down - row) // stride, (right - column) // stride)
                edges = [
                    (b, count - b - size, 0)
                    for b, count, size in zip(back, blocks, part.shape[1:3], strict=True)
                ]
                total += lax.pad(part, jnp.zeros((), part.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
        total = total.astype(gradient.dtype)
        return jnp.broadcast_to(total, (images, *blocks, channels))

    rows = [jnp.stack([at(row, column) for column in range(stride)], 3) for row in range(stride)]
    spread = jnp.stack(rows, 2)  # f[B, blocks, stride, blocks, stride, C]
    spread = spread.reshape(images, blocks[0] * stride, blocks[1] * stride, channels)
    (top, _), (left, _) = pads
    return (spread[:, top : top + height, left : left + width],)


max_pool_tracked.defvjp(_max_pool_forward, _max_pool_backward)
