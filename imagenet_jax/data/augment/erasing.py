"""Random erasing (Zhong et al. 2020, arXiv:1708.04896), drawn as torchvision's RandomErasing."""

import math

import jax
import jax.numpy as jnp

_ATTEMPTS = 10  # boxes drawn for an image until one fits into it; where none does, none is erased


def boxes(
    key: jax.Array,
    count: int,
    height: int,
    width: int,
    probability: float,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
) -> jax.Array:
    """(top, left, box height, box width) of each image, i32[count, 4]; zeros: nothing is erased.

    Args:
      probability: of an image to be erased.
      scale: bounds of the box's area over the image's, uniform between them.
      ratio: bounds of the box's height over its width, uniform in the logarithm.
    """
    erase_key, area_key, ratio_key, top_key, left_key = jax.random.split(key, 5)
    shape = (count, _ATTEMPTS)
    area = height * width * jax.random.uniform(area_key, shape, minval=scale[0], maxval=scale[1])
    aspect = jnp.exp(
        jax.random.uniform(ratio_key, shape, minval=math.log(ratio[0]), maxval=math.log(ratio[1]))
    )
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


def erase(pixels: jax.Array, box: jax.Array, value: jax.Array | float = 0.0) -> jax.Array:
    """The pixels f[B, H, W, C] with `value`, of a shape that broadcasts, inside i32[B, 4] boxes."""
    top, left, h, w = (box[:, i, None, None, None] for i in range(4))
    y = jnp.arange(pixels.shape[1])[None, :, None, None]
    x = jnp.arange(pixels.shape[2])[None, None, :, None]
    inside = (y >= top) & (y < top + h) & (x >= left) & (x < left + w)
    return jnp.where(inside, value, pixels)


def random_erasing(
    pixels: jax.Array, key: jax.Array, probability: float, fill: str = "zero"
) -> jax.Array:
    """A box of each image is erased with some probability.

    Args:
      pixels: f32[B, H, W, C], normalized.
      probability: of an image to be erased.
      fill: "zero", which is the mean color, or "noise", N(0, 1) in every value.

    Returns:
      f32[B, H, W, C].
    """
    box_key, noise_key = jax.random.split(key)
    count, height, width = pixels.shape[:3]
    box = boxes(box_key, count, height, width, probability)
    noise = jax.random.normal(noise_key, pixels.shape, pixels.dtype) if fill == "noise" else 0.0
    return erase(pixels, box, noise)
