"""What is done to pixels on the accelerator, inside the step."""

import jax
import jax.numpy as jnp


def normalize(
    images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: str = "float32"
) -> jax.Array:
    """(images / 255 - mean) / std: u8[B, H, W, 3] -> dtype[B, H, W, 3], computed in float32."""
    scale = 1.0 / (255.0 * jnp.asarray(std, jnp.float32))
    shift = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) * scale - shift).astype(dtype)


def random_flip(images: jax.Array, key: jax.Array) -> jax.Array:
    """Each image of [B, H, W, C] mirrored left to right with probability one half."""
    flip = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)
