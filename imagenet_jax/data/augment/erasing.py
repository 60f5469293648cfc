"""Random erasing (Zhong et al. 2020, arXiv:1708.04896), drawn as in torchvision's RandomErasing."""

import math

import jax
import jax.numpy as jnp

_ATTEMPTS = 10  # boxes drawn for an image until one fits; if none does, nothing is erased
_AREA = (0.02, 0.33)  # area of the box / area of the image, uniform
_RATIO = (0.3, 3.3)  # height / width of the box, log-uniform


def boxes(key: jax.Array, count: int, height: int, width: int, probability: float) -> jax.Array:
    """Return (top, left, height, width) of the box in each image: i32[count, 4]; zeros: no box."""
    erase_key, area_key, ratio_key, top_key, left_key = jax.random.split(key, 5)
    shape = (count, _ATTEMPTS)
    area = height * width * jax.random.uniform(area_key, shape, minval=_AREA[0], maxval=_AREA[1])
    low, high = map(math.log, _RATIO)
    aspect = jnp.exp(jax.random.uniform(ratio_key, shape, minval=low, maxval=high))
    h = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    w = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (h < height) & (w < width)
    first = jnp.argmax(fits, axis=1, keepdims=True)
    h = jnp.take_along_axis(h, first, axis=1)[:, 0]
    w = jnp.take_along_axis(w, first, axis=1)[:, 0]
    top = jax.random.randint(top_key, (count,), 0, jnp.maximum(height - h, 0) + 1)
    left = jax.random.randint(left_key, (count,), 0, jnp.maximum(width - w, 0) + 1)
    erased = jax.random.bernoulli(erase_key, probability, (count,)) & fits.any(axis=1)
    return jnp.where(erased[:, None], jnp.stack([top, left, h, w], axis=1), 0)


def random_erasing(
    pixels: jax.Array, key: jax.Array, probability: float, fill: str = "zero"
) -> jax.Array:
    """Erase a box of each image with some probability.

    Args:
      pixels: f32[B, H, W, C], normalized.
      fill: "zero", the mean color, or "noise", N(0, 1) for each value.
    """
    box_key, noise_key = jax.random.split(key)
    count, height, width = pixels.shape[:3]
    box = boxes(box_key, count, height, width, probability)
    noise = jax.random.normal(noise_key, pixels.shape, pixels.dtype) if fill == "noise" else 0.0
    top, left, h, w = (box[:, i, None, None, None] for i in range(4))
    y = jnp.arange(height)[None, :, None, None]
    x = jnp.arange(width)[None, None, :, None]
    inside = (y >= top) & (y < top + h) & (x >= left) & (x < left + w)
    return jnp.where(inside, noise, pixels)
