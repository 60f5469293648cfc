"""Operations on the color and geometry of images u8[B, H, W, 3], with an amount for each image.

They are those of torchvision's `transforms.v2.functional` on uint8 tensors, and truncate or round
results in the same way. Lookup tables equal torchvision's bit for bit. Blends and hues may differ
by one level in a few percent of the values, where the last bit of a float32 sum matters. torch has
the same differences between processors with and without fused multiply-add.

A matrix f32[B, 2, 3] maps an output pixel (x, y, 1) to the point of the input that it shows. The
coordinates are pixels from the center of the image, with y pointing down.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Principal components of ImageNet's RGB in [0, 1] (Krizhevsky et al. 2012, section 4.1), with the
# values of facebook/fb.resnet.torch. Column i belongs to eigenvalue i.
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203),
)  # fmt: skip


def per_image(amount: jax.Array) -> jax.Array:
    """Reshape [B] to [B, 1, 1, 1]."""
    return jnp.asarray(amount)[:, None, None, None]


def grayscale(images: jax.Array) -> jax.Array:
    """Return 0.2989 R + 0.587 G + 0.114 B, rounded down: i32[B, H, W, 1]."""
    r, g, b = (images[..., i : i + 1].astype(jnp.int32) for i in range(3))
    return (2989 * r + 5870 * g + 1140 * b) // 10000


def mean_gray(images: jax.Array) -> jax.Array:
    """Return the mean of `grayscale` over each image: f32[B, 1, 1, 1]."""
    height, width = images.shape[1:3]
    total = jnp.sum(grayscale(images), axis=(1, 2, 3), keepdims=True)
    return total.astype(jnp.float32) / (height * width)


def blur(images: jax.Array) -> jax.Array:
    """Return the 3x3 mean with center weight 5, and border pixels unchanged: i32[B, H, W, 3]."""
    x = jnp.asarray(images, jnp.int32)
    if min(x.shape[1:3]) < 3:
        return x
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * x[:, 1:-1, 1:-1]
    # Exactly the rounded mean, because a multiple of 1/13 is never halfway between two integers.
    return x.at[:, 1:-1, 1:-1].set((2 * total + 13) // 26)


def to_bytes(x: jax.Array) -> jax.Array:
    """Clip to 0..255 and truncate."""
    return jnp.clip(x, 0, 255).astype(jnp.uint8)


def mixture(images: jax.Array, other: jax.Array, change: jax.Array) -> jax.Array:
    """Return (1 + change) * images - change * other: f32[B, H, W, 3], for change f32[B]."""
    change = per_image(change)
    return images.astype(jnp.float32) * (1.0 + change) - other * change


def brightness(images: jax.Array, change: jax.Array) -> jax.Array:
    """Multiply by 1 + change, f32[B]. -1 gives a black image, 0 the image itself."""
    return to_bytes(mixture(images, jnp.float32(0), change))


def contrast(images: jax.Array, change: jax.Array) -> jax.Array:
    """Multiply the distance from the mean gray by 1 + change, f32[B]."""
    return to_bytes(mixture(images, mean_gray(images), change))


def saturation(images: jax.Array, change: jax.Array) -> jax.Array:
    """Multiply the distance from the gray value of each pixel by 1 + change, f32[B]."""
    return to_bytes(mixture(images, grayscale(images).astype(jnp.float32), change))


def sharpness(images: jax.Array, change: jax.Array) -> jax.Array:
    """Multiply the distance from the blurred image by 1 + change, f32[B]."""
    # In this form, flat areas, where both images are equal, do not change at all.
    return to_bytes(images - per_image(change) * (blur(images) - images.astype(jnp.float32)))


def hue(images: jax.Array, turn: jax.Array) -> jax.Array:
    """Rotate the hue by f32[B] full turns (HSV; Smith 1978, Color gamut transform pairs)."""
    x = images.astype(jnp.float32) * (1.0 / 255.0)
    r, g, b = x[..., 0], x[..., 1], x[..., 2]
    value = jnp.max(x, axis=-1)
    spread = value - jnp.min(x, axis=-1)
    gray = spread == 0
    divisor = jnp.where(gray, 1.0, spread)
    h = jnp.where(value == r, (g - b) / divisor, 0.0)
    h = jnp.where((value == g) & (value != r), 2.0 + (b - r) / divisor, h)
    h = jnp.where((value != r) & (value != g), 4.0 + (r - g) / divisor, h)
    h = jnp.mod(h / 6.0 + jnp.asarray(turn)[:, None, None], 1.0)
    # Each channel is full within a sixth of the circle around it, and linear beyond.
    angle = jnp.mod(jnp.asarray([5.0, 3.0, 1.0], jnp.float32) + 6.0 * h[..., None], 6.0)
    out = value[..., None] - spread[..., None] * jnp.clip(jnp.minimum(angle, 4.0 - angle), 0.0, 1.0)
    return jnp.clip(out * (256.0 - 1e-3), 0, 255).astype(jnp.uint8)


def posterize(images: jax.Array, bits: jax.Array) -> jax.Array:
    """Keep the highest i32[B] bits of each value and set the others to 0."""
    lost = jnp.asarray(8 - jnp.asarray(bits), jnp.int32)
    return images & per_image((jnp.left_shift(255, lost) & 255).astype(jnp.uint8))


def solarize(images: jax.Array, threshold: jax.Array) -> jax.Array:
    """Invert values of at least the f32[B] threshold."""
    return jnp.where(images.astype(jnp.float32) >= per_image(threshold), invert(images), images)


def solarize_add(images: jax.Array, levels: jax.Array) -> jax.Array:
    """Brighten values below 128 by f32[B] levels, to at most 255."""
    x = images.astype(jnp.float32)
    return to_bytes(jnp.where(x < 128, x + per_image(levels), x))


def invert(images: jax.Array) -> jax.Array:
    """Return 255 - images."""
    return 255 - images


def lookup(images: jax.Array, table: jax.Array) -> jax.Array:
    """Replace each value with its entry in `table` u8[B, 256, 3], for its image and channel."""
    flat = images.reshape(images.shape[0], -1, images.shape[-1]).astype(jnp.int32)
    return jnp.take_along_axis(table, flat, axis=1).reshape(images.shape)


_SPREAD = np.arange(256, dtype=np.float32)[:, None]  # highest value - lowest
# [spread, value - lowest] -> value stretched to 0..255. It is computed here, because compilers
# replace a division by a multiplication, which can be one level off.
_STRETCHED = np.clip(
    _SPREAD.T / np.where(_SPREAD > 0, _SPREAD * np.float32(1 / 255), np.float32(1)), 0, 255
).astype(np.uint8)


def autocontrast_table(images: jax.Array) -> jax.Array:
    """Return the table u8[B, 256, 3] that stretches channels that are not constant to 0..255."""
    low = jnp.min(images, axis=(1, 2)).astype(jnp.int32)[:, None, :]
    high = jnp.max(images, axis=(1, 2)).astype(jnp.int32)[:, None, :]
    above = jnp.arange(256)[None, :, None] - jnp.where(high > low, low, 0)
    return jnp.asarray(_STRETCHED)[high - low, jnp.maximum(above, 0)]


def equalize_table(images: jax.Array) -> jax.Array:
    """Return the table u8[B, 256, 3] that equalizes each channel's histogram, as Pillow does.

    A value becomes (pixels below it + step // 2) // step, where step is a 255th of the pixels
    below the channel's largest value. A channel whose step is 0 is unchanged.
    """
    flat = images.reshape(images.shape[0], -1, images.shape[-1]).astype(jnp.int32)
    count = jax.vmap(jax.vmap(lambda x: jnp.zeros(256, jnp.int32).at[x].add(1), 1, 1))
    counts = count(flat)
    largest = jnp.max(images, axis=(1, 2)).astype(jnp.int32)[:, None, :]
    at_largest = jnp.take_along_axis(counts, largest, axis=1)
    step = (images.shape[1] * images.shape[2] - at_largest) // 255
    below = jnp.cumsum(counts, axis=1) - counts
    table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step > 0, table, jnp.arange(256)[None, :, None]).astype(jnp.uint8)


def jitter(images: jax.Array, key: jax.Array, amounts: tuple[float, ...]) -> jax.Array:
    """Change brightness, contrast, saturation and hue at random, in a random order.

    As in torchvision's ColorJitter, the first three change by a factor uniform in
    [max(0, 1 - amount), 1 + amount], and the hue by a turn uniform in [-amount, amount]. The
    factors are drawn for each image. The order is drawn once for the batch, so that only one
    operation runs at a time.

    Args:
      images: u8[B, H, W, 3].
      amounts: one for each of the four operations; 0: off.
    """
    order_key, *keys = jax.random.split(key, 5)
    operations = []
    for operation, amount, k in zip(
        (brightness, contrast, saturation, hue), amounts, keys, strict=True
    ):
        if amount > 0:
            low = -amount if operation is hue else -min(amount, 1.0)
            change = jax.random.uniform(k, images.shape[:1], minval=low, maxval=amount)
            operations.append(lambda x, f=operation, c=change: f(x, c))
    order = jax.random.permutation(order_key, len(operations))
    for place in range(len(operations)):
        images = jax.lax.switch(order[place], operations, images)
    return images


def lighting(
    pixels: jax.Array, key: jax.Array, deviation: float, std: tuple[float, ...]
) -> jax.Array:
    """Shift the color of each image along ImageNet's principal components (Krizhevsky et al. 2012).

    The shift of RGB in [0, 1] is the sum of the components, each multiplied by its eigenvalue and a
    number drawn for each image from N(0, deviation^2).

    Args:
      pixels: f32[B, H, W, 3], normalized with the standard deviations `std`.
    """
    alpha = deviation * jax.random.normal(key, (len(pixels), 1, 3))
    scaled = alpha * jnp.asarray(EIGENVALUES, jnp.float32)
    shift = jnp.sum(scaled * jnp.asarray(EIGENVECTORS, jnp.float32), axis=-1)[:, None, None, :]
    return pixels + shift / jnp.asarray(std, jnp.float32)


def _matrix(*entries: jax.Array | float) -> jax.Array:
    """Return f32[B, 2, 3] from its six entries, numbers or f32[B]."""
    values = jnp.broadcast_arrays(*(jnp.float32(entry) for entry in entries))
    return jnp.stack(values, axis=-1).reshape(-1, 2, 3)


def shear_x(amount: jax.Array, height: int) -> jax.Array:
    """Return the matrix that moves row y left by f32[B] amount * y, y from the upper edge."""
    return _matrix(1, amount, amount * height / 2, 0, 1, 0)


def shear_y(amount: jax.Array, width: int) -> jax.Array:
    """Return the matrix that moves column x up by f32[B] amount * x, x from the left edge."""
    return _matrix(1, 0, 0, amount, 1, amount * width / 2)


def translate(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the matrix that moves the image right by x and down by y, f32[B] pixels."""
    return _matrix(1, 0, -x, 0, 1, -y)


def rotate(degrees: jax.Array) -> jax.Array:
    """Return the matrix that turns the image counter-clockwise by f32[B] degrees."""
    radians = jnp.deg2rad(degrees)
    c, s = jnp.cos(radians), jnp.sin(radians)
    return _matrix(c, -s, 0, s, c, 0)


def affine(
    images: jax.Array,
    matrix: jax.Array,
    interpolation: str = "nearest",
    fill: tuple[float, ...] | None = None,
) -> jax.Array:
    """Transform each image with its matrix, like torchvision's `affine`.

    Args:
      images: u8[B, H, W, C].
      matrix: f32[B, 2, 3].
      interpolation: "nearest" | "bilinear".
      fill: color outside the image, C values in [0, 255]; None: black. With "bilinear" and a fill,
        pixels on the border are mixed with the fill twice, as in torchvision.

    Returns:
      u8[B, H, W, C], rounded.
    """
    height, width, channels = images.shape[1:]
    x = jnp.arange(width, dtype=jnp.float32)[None, None, :] - (width - 1) / 2
    y = jnp.arange(height, dtype=jnp.float32)[None, :, None] - (height - 1) / 2
    # Not a matrix product: accelerators reduce the precision of its operands.
    m = matrix[:, :, :, None, None]
    source_x = m[:, 0, 0] * x + m[:, 0, 1] * y + m[:, 0, 2] + (width - 1) / 2
    source_y = m[:, 1, 0] * x + m[:, 1, 1] * y + m[:, 1, 2] + (height - 1) / 2
    flat = images.reshape(images.shape[0], height * width, channels)
    color = jnp.asarray((0.0,) * channels if fill is None else fill, jnp.float32)

    def at(row: jax.Array, column: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the values [B, H, W, C], and whether the points are inside [B, H, W, 1]."""
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
