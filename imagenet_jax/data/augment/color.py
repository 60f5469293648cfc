"""Color operations on images u8[B, H, W, 3], each image by its own amount.

They are torchvision's (`transforms.v2.functional`) on uint8 tensors: results are cut off to whole
numbers, not rounded, where they are there. Tables are equal to it bit for bit. Blends and hues
may differ by one level, in a few values of a hundred, where float32 sums lie at a whole number and
the last bit decides: processors that fuse products and sums differ so in torch too.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Principal components of ImageNet's RGB in [0, 1] (Krizhevsky et al. 2012, section 4.1); the
# values are those of facebook/fb.resnet.torch. Column i goes with eigenvalue i.
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


def per_image(amount: jax.Array) -> jax.Array:
    """[B] -> [B, 1, 1, 1]."""
    return jnp.asarray(amount)[:, None, None, None]


def grayscale(images: jax.Array) -> jax.Array:
    """The whole part of 0.2989 R + 0.587 G + 0.114 B, i32[B, H, W, 1]."""
    r, g, b = (images[..., i : i + 1].astype(jnp.int32) for i in range(3))
    return (2989 * r + 5870 * g + 1140 * b) // 10000


def mean_gray(images: jax.Array) -> jax.Array:
    """The mean of `grayscale` over each image, f32[B, 1, 1, 1]."""
    height, width = images.shape[1:3]
    total = jnp.sum(grayscale(images), axis=(1, 2, 3), keepdims=True)
    return total.astype(jnp.float32) / (height * width)


def blur(images: jax.Array) -> jax.Array:
    """3x3 mean with the center counted 5 times, i32[B, H, W, 3]; border pixels are left."""
    x = jnp.asarray(images, jnp.int32)
    if min(x.shape[1:3]) < 3:
        return x
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * x[:, 1:-1, 1:-1]
    # A multiple of 1/13 is never half-way, so this is the rounded mean exactly.
    return x.at[:, 1:-1, 1:-1].set((2 * total + 13) // 26)


def to_bytes(x: jax.Array) -> jax.Array:
    """Cut off at 0 and 255, and to whole numbers."""
    return jnp.clip(x, 0, 255).astype(jnp.uint8)


def mixture(images: jax.Array, other: jax.Array, change: jax.Array) -> jax.Array:
    """(1 + change) * images - change * other in f32[B, H, W, 3], change f32[B]."""
    change = per_image(change)
    return images.astype(jnp.float32) * (1.0 + change) - other * change


def brightness(images: jax.Array, change: jax.Array) -> jax.Array:
    """Times 1 + f32[B] change, which is -1 or more: -1 is black, 0 the image itself."""
    return to_bytes(mixture(images, jnp.float32(0), change))


def contrast(images: jax.Array, change: jax.Array) -> jax.Array:
    """Distance from the mean gray times 1 + f32[B] change."""
    return to_bytes(mixture(images, mean_gray(images), change))


def saturation(images: jax.Array, change: jax.Array) -> jax.Array:
    """Distance from the pixel's own gray times 1 + f32[B] change."""
    return to_bytes(mixture(images, grayscale(images).astype(jnp.float32), change))


def sharpness(images: jax.Array, change: jax.Array) -> jax.Array:
    """Distance from the blurred image times 1 + f32[B] change."""
    # Written so that a flat surface, where both are equal, stays exactly as it is.
    return to_bytes(images - per_image(change) * (blur(images) - images.astype(jnp.float32)))


def hue(images: jax.Array, turn: jax.Array) -> jax.Array:
    """The hue moves by f32[B] turn of a full circle (HSV; Smith 1978, Color gamut transforms)."""
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
    """The highest i32[B] bits of each value, the others 0."""
    lost = jnp.asarray(8 - jnp.asarray(bits), jnp.int32)
    return images & per_image((jnp.left_shift(255, lost) & 255).astype(jnp.uint8))


def solarize(images: jax.Array, threshold: jax.Array) -> jax.Array:
    """Values of f32[B] threshold or more are inverted."""
    return jnp.where(images.astype(jnp.float32) >= per_image(threshold), invert(images), images)


def solarize_add(images: jax.Array, levels: jax.Array) -> jax.Array:
    """Values below 128 become brighter by f32[B] levels, at most 255."""
    x = images.astype(jnp.float32)
    return to_bytes(jnp.where(x < 128, x + per_image(levels), x))


def invert(images: jax.Array) -> jax.Array:
    """255 less each value."""
    return 255 - images


def lookup(images: jax.Array, table: jax.Array) -> jax.Array:
    """Each value replaced by its entry in its image's and channel's table, u8[B, 256, 3]."""
    flat = images.reshape(images.shape[0], -1, images.shape[-1]).astype(jnp.int32)
    return jnp.take_along_axis(table, flat, axis=1).reshape(images.shape)


def _stretched() -> np.ndarray:
    """u8[256, 256]: [spread, value above the lowest] to the value in 0..255."""
    spread = np.arange(256, dtype=np.float32)[:, None]
    above = np.arange(256, dtype=np.float32)[None, :]
    scale = np.where(spread > 0, spread * np.float32(1 / 255), np.float32(1))
    return np.clip(above / scale, 0, 255).astype(np.uint8)


# Divided here, because compilers turn a division into a product that ends one level off.
_STRETCHED = _stretched()


def autocontrast_table(images: jax.Array) -> jax.Array:
    """The table u8[B, 256, 3] that stretches each channel to 0..255; a flat channel is left."""
    low = jnp.min(images, axis=(1, 2)).astype(jnp.int32)[:, None, :]
    high = jnp.max(images, axis=(1, 2)).astype(jnp.int32)[:, None, :]
    above = jnp.arange(256)[None, :, None] - jnp.where(high > low, low, 0)
    return jnp.asarray(_STRETCHED)[high - low, jnp.maximum(above, 0)]


def autocontrast(images: jax.Array) -> jax.Array:
    """Each channel stretched to 0..255."""
    return lookup(images, autocontrast_table(images))


def histogram(images: jax.Array) -> jax.Array:
    """How many pixels of each channel have each value, i32[B, 256, 3]."""
    flat = images.reshape(images.shape[0], -1, images.shape[-1]).astype(jnp.int32)

    def one(values: jax.Array) -> jax.Array:
        return jnp.zeros((256,), jnp.int32).at[values].add(1)

    return jax.vmap(jax.vmap(one, in_axes=1, out_axes=1))(flat)


def equalize_table(images: jax.Array) -> jax.Array:
    """The table u8[B, 256, 3] that equalizes each channel's histogram, as Pillow computes it.

    A value becomes (pixels below it + step // 2) // step, where step is a 255th of the pixels
    below the channel's largest value. A channel whose step is 0 is left.
    """
    counts = histogram(images)
    largest = jnp.max(images, axis=(1, 2)).astype(jnp.int32)[:, None, :]
    at_largest = jnp.take_along_axis(counts, largest, axis=1)
    step = (images.shape[1] * images.shape[2] - at_largest) // 255
    below = jnp.cumsum(counts, axis=1) - counts
    table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step > 0, table, jnp.arange(256)[None, :, None]).astype(jnp.uint8)


def equalize(images: jax.Array) -> jax.Array:
    """Each channel with a histogram as flat as it can be."""
    return lookup(images, equalize_table(images))


def jitter(images: jax.Array, key: jax.Array, amounts: tuple[float, ...]) -> jax.Array:
    """Brightness, contrast, saturation and hue changed at random, in a random order.

    As torchvision's ColorJitter: the first three change by a factor uniform in
    [max(0, 1 - amount), 1 + amount], the hue by a turn uniform in [-amount, amount]. Each image
    has its own factors; the order is drawn once for the batch, so that one operation runs at a
    time and not four.

    Args:
      images: u8[B, H, W, 3].
      amounts: of the four; an operation whose amount is 0 is left out.
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


def lighting(key: jax.Array, count: int, deviation: float) -> jax.Array:
    """What to add to the RGB in [0, 1] of each image, f32[count, 1, 1, 3] (Krizhevsky 2012).

    The sum of ImageNet's principal components, each times its eigenvalue and a number drawn from
    N(0, deviation^2) once an image.
    """
    alpha = deviation * jax.random.normal(key, (count, 1, 3))
    scaled = alpha * jnp.asarray(EIGENVALUES, jnp.float32)
    return jnp.sum(scaled * jnp.asarray(EIGENVECTORS, jnp.float32), axis=-1)[:, None, None, :]
