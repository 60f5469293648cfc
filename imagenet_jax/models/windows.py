"""Convolution and max pooling, with faster algorithms where XLA's kernels are slow.

A step of ResNet-50 on an H100 spent 13 % of its time in two operations with slow kernels: the
convolution of the image, whose 3 channels do not fill tensor cores, and the gradient of max
pooling, a scatter. On CPUs, XLA's depthwise convolutions are slow (benchmarks/RESULTS.md). The
results equal XLA's up to the order of sums.
"""

import functools
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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

    On NVIDIA GPUs, strided convolutions of at most 3 channels are computed by `convolve_blocks`;
    on CPUs, depthwise convolutions are computed by `convolve_depthwise`.

    Args:
      images: f[B, H, W, I].
      kernel: f[h, w, I / groups, O].
    """

    def plain(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(images, kernel, window_strides, padding, **options)

    channels, outputs = images.shape[-1], kernel.shape[-1]
    grouped = kernel.shape[2] != channels
    depthwise = grouped and kernel.shape[2] == 1 and outputs == channels
    if not depthwise and (grouped or channels > _FEW_CHANNELS or min(window_strides) == 1):
        return plain(images, kernel)
    rows, columns = (
        lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], window_strides, padding)
        if isinstance(padding, str)
        else padding
    )
    fast = partial(
        convolve_depthwise if depthwise else convolve_blocks,
        strides=(window_strides[0], window_strides[1]),
        pads=(rows, columns),
    )
    platform = {"cpu" if depthwise else "cuda": fast}
    return lax.platform_dependent(images, kernel, **platform, default=plain)


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


def convolve_depthwise(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> jax.Array:
    """Return a convolution of each channel with its own kernel, as a sum of shifted images.

    Sums are in float32 or float64.

    Args:
      images: f[B, H, W, C].
      kernel: f[h, w, 1, C].
      strides, pads: those of `convolve_blocks`.
    """
    wide = jnp.promote_types(images.dtype, jnp.float32)
    padded = jnp.pad(images, ((0, 0), *pads, (0, 0))).astype(wide)
    return _depthwise(padded, kernel[:, :, 0].astype(wide), strides).astype(images.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    """f[B, H, W, C], f[h, w, C] -> f[B, y, x, C]: a depthwise convolution without padding."""
    shape = _outputs(x, kernel.shape, strides)

    # The loop is over the rows of the kernel, because larger programs take longer to compile.
    def add_row(i: jax.Array, total: jax.Array) -> jax.Array:
        pixels = lax.dynamic_slice_in_dim(x, i, strides[0] * (shape[0] - 1) + 1, 1)
        for j in range(kernel.shape[1]):
            total += _at(pixels, (0, j), shape, strides) * kernel[i, j]
        return total

    zeros = jnp.zeros((len(x), *shape, x.shape[-1]), x.dtype)
    return lax.fori_loop(0, len(kernel), add_row, zeros)


def _depthwise_backward(
    strides: tuple[int, int], operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = operands
    (rows, columns), width = gradient.shape[1:3], kernel.shape[1]
    pads = [
        (size - 1, side - stride * (count - 1) - 1, stride - 1)
        for size, side, stride, count in zip(
            kernel.shape[:2], x.shape[1:3], strides, (rows, columns), strict=True
        )
    ]
    spread = lax.pad(gradient, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    d_x = _depthwise(spread, kernel[::-1, ::-1], (1, 1))

    # XLA sums over pixels slowly, channel after channel. This adds whole rows of all images, for
    # all columns of the kernel at once. The loop is not over images, which devices divide.
    def kernel_row(i: jax.Array) -> jax.Array:
        def add_row(y: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
            pixels = lax.dynamic_slice_in_dim(x, y * strides[0] + i, 1, 1)
            factors = lax.dynamic_slice_in_dim(gradient, y, 1, 1)
            return [
                total + _at(pixels, (0, j), (1, columns), strides) * factors
                for j, total in enumerate(sums)
            ]

        sums = lax.fori_loop(0, rows, add_row, [jnp.zeros_like(gradient[:, :1])] * width)
        return jnp.stack([jnp.sum(total, (0, 1, 2)) for total in sums])

    return d_x, lax.map(kernel_row, jnp.arange(len(kernel)))


_depthwise.defvjp(
    lambda x, kernel, strides: (_depthwise(x, kernel, strides), (x, kernel)), _depthwise_backward
)


def _outputs(x: jax.Array, window: Sequence[int], strides: tuple[int, int]) -> tuple[int, int]:
    """Return the numbers of rows and columns of windows in the images x, f[B, H, W, C]."""
    height, width = x.shape[1:3]
    return (height - window[0]) // strides[0] + 1, (width - window[1]) // strides[1] + 1


def _at(
    x: jax.Array, place: tuple[int, ...], shape: tuple[int, int], strides: tuple[int, int]
) -> jax.Array:
    """Return f[B, *shape, C]: the pixels of x at one `place` (row, column) of each window."""
    rows, columns = (
        slice(start, start + stride * (count - 1) + 1, stride)
        for start, count, stride in zip(place, shape, strides, strict=True)
    )
    return x[:, rows, columns]


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
    strides = (stride, stride)
    shape = _outputs(padded, (window, window), strides)
    # One maximum finds both value and position: it is taken over integers whose high bits order the
    # pixels, and whose low bits prefer the first position.
    last = window**2 - 1
    keys = [
        _ordered(_at(padded, place, shape, strides)) * (last + 1) + (last - i)
        for i, place in enumerate(np.ndindex(window, window))
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
