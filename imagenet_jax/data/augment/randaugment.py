"""RandAugment (Cubuk et al. 2020) and TrivialAugment (Müller & Hutter 2021, wide).

The operations, their order and their magnitudes are torchvision's; `timm_policy` has timm's.

Each image draws its own operation. A branch per operation would run all of them on every image
(`lax.switch` under `vmap`), and one image after the other would leave an accelerator idle and undo
the sharding of the batch. They are of three kinds, though:

- geometry: one gather through a matrix that depends on the operation;
- blends with another image (contrast, color, sharpness): one weighted sum;
- tables (brightness, posterize, solarize, equalize and others): one look-up in 256 entries.

Each image goes through one of each kind and keeps its own result. That is the cost: about
three operations where one counts, and a histogram, needed by one image in fourteen, for all. On
two CPU cores it is some 10 ms for an image of 224x224, half of it the histogram, where one
operation alone takes 1 ms; nothing moves between devices.
"""

import jax
import jax.numpy as jnp
import numpy as np

from imagenet_jax.data.augment import color, geometry

OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness",
    "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
EVERY = (*OPERATIONS, "invert", "solarize_add")  # the last two are timm's
SIGNED = 10  # the operations before "posterize" go either way, with equal chances
BINS = 31  # magnitudes from 0, the weakest, to 30


def magnitudes(policy: str, height: int, width: int) -> np.ndarray:
    """f32[14, 31]: the magnitude of each of OPERATIONS at each bin, before the sign.

    Shears are slopes, translations pixels, rotations degrees; brightness, color, contrast and
    sharpness are changes of a factor from 1; posterize is bits that stay, solarize a share of 255.

    Args:
      policy: "randaugment" (arXiv:1909.13719) | "trivialaugment" (arXiv:2103.10158), wide.
    """
    if policy == "randaugment":
        share = 150 / 331  # of the side: 150 pixels of AutoAugment's 331
        shear, shift_x, shift_y, turn, factor = 0.3, share * width, share * height, 30.0, 0.9
        lost_bits = 4
    else:
        shear, shift_x, shift_y, turn, factor = 0.99, 32.0, 32.0, 135.0, 0.99
        lost_bits = 6
    table = np.zeros((len(OPERATIONS), BINS), np.float32)
    for names, end in (
        (("shear_x", "shear_y"), shear),
        (("translate_x",), shift_x),
        (("translate_y",), shift_y),
        (("rotate",), turn),
        (("brightness", "color", "contrast", "sharpness"), factor),
    ):
        for name in names:
            table[OPERATIONS.index(name)] = _linspace(0.0, end)
    moves = [OPERATIONS.index(name) for name in ("translate_x", "translate_y")]
    table[moves] = np.trunc(table[moves])  # whole pixels
    table[OPERATIONS.index("posterize")] = 8 - np.round(np.arange(BINS) * lost_bits / (BINS - 1))
    table[OPERATIONS.index("solarize")] = _linspace(1.0, 0.0)
    return table


def _linspace(start: float, end: float) -> np.ndarray:
    """f32[31], rounded as by torch.linspace: counted in float32 steps from the nearer end."""
    step = float(np.float32(end - start) / np.float32(BINS - 1))
    at = np.arange(BINS)
    up, down = start + step * at, float(np.float32(end)) - step * (BINS - 1 - at)
    return np.where(at < BINS // 2, up, down).astype(np.float32)


def apply(
    images: jax.Array,
    operation: jax.Array,
    magnitude: jax.Array,
    interpolation: str = "nearest",
    fill: tuple[float, ...] | None = None,
) -> jax.Array:
    """Each image after its own operation.

    Args:
      images: u8[B, H, W, 3].
      operation: i32[B], an index of EVERY.
      magnitude: f32[B], signed, in the units of `magnitudes`; solarize_add's are levels.
      interpolation, fill: of the geometric operations; see `geometry.affine`.

    Returns:
      u8[B, H, W, 3].
    """
    images = _geometric(images, operation, magnitude, interpolation, fill)
    images = _blended(images, operation, magnitude)
    return _looked_up(images, operation, magnitude)


def _is(operation: jax.Array, *names: str) -> jax.Array:
    return jnp.isin(operation, jnp.asarray([EVERY.index(name) for name in names]))


def _geometric(
    images: jax.Array,
    operation: jax.Array,
    magnitude: jax.Array,
    interpolation: str,
    fill: tuple[float, ...] | None,
) -> jax.Array:
    height, width = images.shape[1:3]
    zero = jnp.zeros_like(magnitude)
    names = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
    matrices = (
        geometry.shear_x(magnitude, height),
        geometry.shear_y(magnitude, width),
        geometry.translate(magnitude, zero),
        geometry.translate(zero, magnitude),
        geometry.rotate(magnitude),
    )
    matrix = geometry.translate(zero, zero)
    for name, candidate in zip(names, matrices, strict=True):
        matrix = jnp.where(_is(operation, name)[:, None, None], candidate, matrix)
    moved = geometry.affine(images, matrix, interpolation, fill)
    return jnp.where(color.per_image(_is(operation, *names)), moved, images)


def _blended(images: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
    def chosen(*names: str) -> jax.Array:
        return color.per_image(_is(operation, *names))

    gray = color.grayscale(images).astype(jnp.float32)
    other = jnp.where(chosen("color"), gray, color.mean_gray(images))
    changed = jnp.where(
        chosen("sharpness"),
        color.sharpness(images, magnitude),
        color.to_bytes(color.mixture(images, other, magnitude)),
    )
    return jnp.where(chosen("color", "contrast", "sharpness"), changed, images)


def _looked_up(images: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
    count = images.shape[0]
    ramp = jnp.broadcast_to(
        jnp.arange(256, dtype=jnp.uint8)[None, :, None, None], (count, 256, 1, 3)
    )
    tables = {
        "brightness": color.brightness(ramp, magnitude)[:, :, 0],
        "posterize": color.posterize(ramp, magnitude.astype(jnp.int32))[:, :, 0],
        "solarize": color.solarize(ramp, 255.0 * magnitude)[:, :, 0],
        "autocontrast": color.autocontrast_table(images),
        "equalize": color.equalize_table(images),
        "invert": color.invert(ramp)[:, :, 0],
        "solarize_add": color.solarize_add(ramp, magnitude)[:, :, 0],
    }
    table = ramp[:, :, 0]
    for name, candidate in tables.items():
        table = jnp.where(_is(operation, name)[:, None, None], candidate, table)
    return color.lookup(images, table)


def randaugment(
    images: jax.Array,
    key: jax.Array,
    num_ops: int = 2,
    magnitude: int = 9,
    interpolation: str = "nearest",
    fill: tuple[float, ...] | None = None,
) -> jax.Array:
    """`num_ops` operations one after the other on each image, all at one bin of magnitude.

    Args:
      images: u8[B, H, W, 3].
      magnitude: 0 to 30.
    """
    bins = jnp.full(images.shape[:1], magnitude)
    table = magnitudes("randaugment", *images.shape[1:3])

    def body(images: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        operation, signed = _draw(key, table, bins)
        return apply(images, operation, signed, interpolation, fill), None

    return jax.lax.scan(body, images, jax.random.split(key, num_ops))[0]


def trivialaugment(
    images: jax.Array,
    key: jax.Array,
    interpolation: str = "nearest",
    fill: tuple[float, ...] | None = None,
) -> jax.Array:
    """One operation on each image u8[B, H, W, 3], at a bin of magnitude drawn uniformly."""
    bin_key, key = jax.random.split(key)
    bins = jax.random.randint(bin_key, images.shape[:1], 0, BINS)
    table = magnitudes("trivialaugment", *images.shape[1:3])
    return apply(images, *_draw(key, table, bins), interpolation, fill)


def _draw(key: jax.Array, table: np.ndarray, bins: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(operation i32[B], signed magnitude f32[B]) at the bins i32[B]."""
    operation_key, sign_key = jax.random.split(key)
    operation = jax.random.randint(operation_key, bins.shape, 0, len(OPERATIONS))
    negative = jax.random.bernoulli(sign_key, 0.5, bins.shape) & (operation < SIGNED)
    value = jnp.asarray(table)[operation, bins]
    return operation, jnp.where(negative, -value, value)
