"""RandAugment (Cubuk et al. 2020, arXiv:1909.13719) as big_vision uses it to train ViTs.

Source: google-research/big_vision, big_vision/pp/archive/autoaugment.py, the code of the TPU
EfficientNets. Operations are always applied, all with one magnitude from 0 to 10 and
nearest-neighbor interpolation, and areas outside the image become gray. Some details of that code
are surprising, and are the same here:

- color, contrast, brightness and sharpness have a factor of 0.1 at magnitude 0, and 1.9 at 10;
- contrast changes the distance from the gray level H * W / 256, not from the mean;
- solarize has a threshold of 256 at magnitude 10, which overflows a byte and inverts all pixels;
- posterize keeps 4 bits at magnitude 10, and only 1 at the lowest magnitudes;
- translations and the box of cutout have the same size in images of any size.

Gray and blurred images may differ by one level before they are blended. A shear leaves the edge of
the image in place; in big_vision it is the center of the first pixel, at most 0.15 pixels away.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from imagenet_jax.data.augment import operations
from imagenet_jax.data.augment.randaugment import EVERY, apply

OPERATIONS = (
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "color", "contrast",
    "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y", "cutout",
    "solarize_add",
)  # fmt: skip
SIGNED = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
HIGHEST = 10.0  # the strongest magnitude
GRAY = 128.0  # level of areas that are moved in from outside or cut out


class Draws(NamedTuple):
    """The random choices of one step for each image.

    Attributes:
      operation: i32[B], an index of OPERATIONS.
      negative: bool[B], whether operations with a sign have a negative amount.
      row, column: i32[B], the center of the box of cutout.
    """

    operation: jax.Array
    negative: jax.Array
    row: jax.Array
    column: jax.Array


def draw(key: jax.Array, count: int, height: int, width: int) -> Draws:
    """Draw operations, signs and centers uniformly."""
    which, sign, row, column = jax.random.split(key, 4)
    return Draws(
        jax.random.randint(which, (count,), 0, len(OPERATIONS)),
        jax.random.bernoulli(sign, 0.5, (count,)),
        jax.random.randint(row, (count,), 0, height),
        jax.random.randint(column, (count,), 0, width),
    )


def amounts(magnitude: float) -> dict[str, float]:
    """Return the amount of each of OPERATIONS, as `apply` takes it; for cutout, in pixels."""
    share = magnitude / HIGHEST
    return {
        **dict.fromkeys(("autocontrast", "equalize", "invert"), 0.0),
        "rotate": 30.0 * share,
        "posterize": max(1, int(4 * share)),
        "solarize": int(256 * share) % 256 / 255.0,
        **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), 1.8 * share - 0.9),
        **dict.fromkeys(("shear_x", "shear_y"), 0.3 * share),
        **dict.fromkeys(("translate_x", "translate_y"), 100.0 * share),
        "cutout": int(40 * share),
        "solarize_add": int(110 * share),
    }


def step(images: jax.Array, draws: Draws, magnitude: float) -> jax.Array:
    """Apply the operation that was drawn for each image u8[B, H, W, 3]."""
    height, width = images.shape[1:3]
    table = amounts(magnitude)
    amount = jnp.asarray([table[name] for name in OPERATIONS], jnp.float32)[draws.operation]
    here = ("contrast", "cutout")  # `apply` does the other operations
    numbers = [EVERY.index("identity" if name in here else name) for name in OPERATIONS]
    signed = jnp.asarray([name in SIGNED for name in OPERATIONS])[draws.operation]
    moved = apply(
        images,
        jnp.asarray(numbers)[draws.operation],
        jnp.where(signed & draws.negative, -amount, amount),
        fill=(GRAY,) * 3,
    )
    is_contrast, is_cutout = (
        operations.per_image(draws.operation == OPERATIONS.index(name)) for name in here
    )
    level = jnp.float32(min(height * width // 256, 255))
    contrasted = operations.to_bytes(operations.mixture(images, level, amount))
    y = jnp.arange(height)[:, None, None] - operations.per_image(draws.row)
    x = jnp.arange(width)[:, None] - operations.per_image(draws.column)
    half = table["cutout"]
    inside = (y >= -half) & (y < half) & (x >= -half) & (x < half)
    result = jnp.where(is_contrast, contrasted, moved)
    return jnp.where(is_cutout & inside, jnp.uint8(GRAY), result)


def randaugment_plain(
    images: jax.Array, key: jax.Array, num_ops: int = 2, magnitude: float = 10.0
) -> jax.Array:
    """Apply `num_ops` operations to each image u8[B, H, W, 3], with a magnitude from 0 to 10."""

    def body(images: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        return step(images, draw(key, *images.shape[:3]), magnitude), None

    return jax.lax.scan(body, images, jax.random.split(key, num_ops))[0]
