"""3-Augment: each image gray, solarized or blurred (Touvron et al. 2022, arXiv:2204.07118).

Source: facebookresearch/deit, augment.py. DeiT III then applies color jitter to brightness,
contrast and saturation (`config.augment.color_jitter`). The operations equal Pillow's.
"""

import jax
import jax.numpy as jnp

from imagenet_jax.data.augment import operations

RADIUS = (0.1, 2.0)  # of the blur, uniform
_ONE = 1 << 24  # weights of the blur are fixed-point numbers with 24 bits
_PASSES = 3


def three_augment(images: jax.Array, key: jax.Array) -> jax.Array:
    """Make each image u8[B, H, W, 3] gray, solarized or blurred, with equal probability."""
    return choose(images, *draw(key, len(images)))


def draw(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Draw the operation i32[count] and the radius of the blur f32[count] of each image."""
    choice_key, radius_key = jax.random.split(key)
    radius = jax.random.uniform(radius_key, (count,), minval=RADIUS[0], maxval=RADIUS[1])
    return jax.random.randint(choice_key, (count,), 0, 3), radius


def choose(images: jax.Array, choice: jax.Array, radius: jax.Array) -> jax.Array:
    """Return each image u8[B, H, W, 3] gray (choice 0), solarized (1) or blurred (2)."""
    weights = jnp.asarray([19595, 38470, 7471])  # those of ITU-R 601-2, times 2 ** 16
    gray = (jnp.sum(images * weights, axis=-1, keepdims=True) + (1 << 15)) >> 16
    solarized = operations.solarize(images, jnp.full(len(images), 128.0))
    choice = operations.per_image(choice)
    other = jnp.where(choice == 1, solarized, gaussian_blur(images, radius))
    return jnp.where(choice == 0, gray.astype(images.dtype), other)


def gaussian_blur(images: jax.Array, radius: jax.Array) -> jax.Array:
    """Return Pillow's ImageFilter.GaussianBlur(radius) of each image u8[B, H, W, C].

    Three box filters in each direction, with fractional weights at both ends, approximate a
    Gaussian with standard deviation `radius` (Gwosdek et al. 2011, Theoretical foundations of
    Gaussian convolution by extended box filtering). Every filter rounds to bytes.

    Args:
      radius: f32[B], less than sqrt(6), so that a box has at most five pixels.
    """
    variance = radius * radius / _PASSES
    whole = jnp.floor((jnp.sqrt(12.0 * variance + 1.0) - 1.0) / 2.0)  # 0 or 1
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    fraction /= 6 * (variance - (whole + 1) ** 2)
    inner = (_ONE / (2 * (whole + fraction) + 1)).astype(jnp.uint32)
    wide = whole == 1
    outer = (_ONE - jnp.where(wide, 3, 1).astype(jnp.uint32) * inner) // 2
    center, near, far = (
        operations.per_image(weight)
        for weight in (inner, jnp.where(wide, inner, outer), jnp.where(wide, outer, 0))
    )

    def box(x: jax.Array, axis: int) -> jax.Array:
        length = x.shape[axis]
        padded = jnp.pad(x, [(2, 2) if a == axis else (0, 0) for a in range(4)], mode="edge")
        at = [jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(5)]
        total = center * at[2] + near * (at[1] + at[3]) + far * (at[0] + at[4])
        return (total + _ONE // 2) // _ONE

    x = images.astype(jnp.uint32)
    for axis in (2, 1):
        # A loop keeps the compiler from fusing the passes and computing each value many times.
        x = jax.lax.fori_loop(0, _PASSES, lambda _, x, axis=axis: box(x, axis), x)
    return x.astype(images.dtype)
