"""Shear, translation and rotation of each image of a batch by its own amount.

A matrix f32[B, 2, 3] takes an output pixel (x, y, 1), in pixels from the image's center with y
downwards, to the point of the input that it shows. `affine` is torchvision's operation of that
name on uint8 tensors.
"""

import jax
import jax.numpy as jnp


def _matrix(rows: tuple[tuple[object, ...], tuple[object, ...]], like: jax.Array) -> jax.Array:
    """f32[B, 2, 3] of entries that are numbers or f32[B]."""
    return jnp.stack(
        [
            jnp.stack([jnp.broadcast_to(jnp.float32(v), like.shape) for v in row], axis=-1)
            for row in rows
        ],
        axis=-2,
    )


def shear_x(amount: jax.Array, height: int) -> jax.Array:
    """Row y of the image moves left by f32[B] amount * y, y from the image's upper edge."""
    return _matrix(((1, amount, amount * height / 2), (0, 1, 0)), amount)


def shear_y(amount: jax.Array, width: int) -> jax.Array:
    """Column x of the image moves up by f32[B] amount * x, x from the image's left edge."""
    return _matrix(((1, 0, 0), (amount, 1, amount * width / 2)), amount)


def translate(x: jax.Array, y: jax.Array) -> jax.Array:
    """The image moves right by x and down by y, f32[B] pixels."""
    return _matrix(((1, 0, -x), (0, 1, -y)), x)


def rotate(degrees: jax.Array) -> jax.Array:
    """The image turns counter-clockwise about its center, by f32[B] degrees."""
    radians = jnp.deg2rad(degrees)
    c, s = jnp.cos(radians), jnp.sin(radians)
    return _matrix(((c, -s, 0), (s, c, 0)), degrees)


def affine(
    images: jax.Array,
    matrix: jax.Array,
    interpolation: str = "nearest",
    fill: tuple[float, ...] | None = None,
) -> jax.Array:
    """Each image seen through its matrix.

    Args:
      images: u8[B, H, W, C].
      matrix: f32[B, 2, 3].
      interpolation: "nearest" | "bilinear".
      fill: the color outside the image, C values in [0, 255]; None is black. With "bilinear" and
        a fill, torchvision mixes a pixel on the border with the fill twice, and so do we.

    Returns:
      u8[B, H, W, C], rounded.
    """
    height, width, channels = images.shape[1:]
    x = jnp.arange(width, dtype=jnp.float32)[None, None, :] - (width - 1) / 2
    y = jnp.arange(height, dtype=jnp.float32)[None, :, None] - (height - 1) / 2
    # Products and sums, not a matrix product: accelerators shorten the operands of those.
    m = matrix[:, :, :, None, None]
    source_x = m[:, 0, 0] * x + m[:, 0, 1] * y + m[:, 0, 2] + (width - 1) / 2
    source_y = m[:, 1, 0] * x + m[:, 1, 1] * y + m[:, 1, 2] + (height - 1) / 2
    flat = images.reshape(images.shape[0], height * width, channels)
    color = jnp.asarray((0.0,) * channels if fill is None else fill, jnp.float32)

    def at(row: jax.Array, column: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(values [B, H, W, C], whether the point is inside [B, H, W, 1])."""
        inside = (row >= 0) & (row <= height - 1) & (column >= 0) & (column <= width - 1)
        index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
        index = index.astype(jnp.int32).reshape(flat.shape[0], -1)
        values = jax.vmap(lambda image, i: image[i])(flat, index)
        return values.reshape(images.shape), inside[..., None]

    if interpolation == "nearest":
        values, inside = at(jnp.round(source_y), jnp.round(source_x))
        return jnp.where(inside, values, jnp.round(color).astype(images.dtype))

    total = jnp.zeros(images.shape, jnp.float32)
    mask = jnp.zeros((*images.shape[:3], 1), jnp.float32)
    top, left = jnp.floor(source_y), jnp.floor(source_x)
    for row in (top, top + 1):
        for column in (left, left + 1):
            weight = (1 - jnp.abs(source_y - row)) * (1 - jnp.abs(source_x - column))
            values, inside = at(row, column)
            share = jnp.where(inside, weight[..., None], 0.0)
            total = total + share * values
            mask = mask + share
    if fill is not None:
        total = mask * (total - color) + color
    return jnp.clip(jnp.round(total), 0, 255).astype(images.dtype)
