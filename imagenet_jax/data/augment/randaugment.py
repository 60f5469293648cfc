"""RandAugment (Cubuk et al. 2020), as in torchvision and timm, and TrivialAugment (wide).

TrivialAugment is from Müller & Hutter 2021. The operations, their order and their magnitudes are
those of torchvision, or of timm in `randaugment_timm`.

Each image gets a random operation. `lax.switch` under `vmap` would run all operations on every
image, and a loop over images would leave the accelerator idle and undo the sharding of the batch.
Instead, every image goes through one operation of each of three kinds, and keeps the result of the
one that was drawn for it:

- geometry: one gather through a matrix that depends on the operation;
- blends with another image (contrast, color, sharpness): one weighted sum;
- tables (brightness, posterize, solarize, equalize and others): one lookup in 256 entries.

An image of 224x224 takes about 10 ms on two CPU cores, half of it for the histogram that equalize
needs; a single operation takes 1 ms. Nothing moves between devices.
"""

import jax
import jax.numpy as jnp
import numpy as np

from imagenet_jax.data.augment import operations

OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness",
    "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
EVERY = (*OPERATIONS, "invert", "solarize_add")
TIMM_OPERATIONS = (
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add",
    "color", "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x",
    "translate_y",
)  # fmt: skip
SIGNED = 10  # number of operations with a random sign: those before "posterize"
BINS = 31  # magnitudes from 0 (weakest) to 30
TIMM_HIGHEST = 10.0  # the strongest magnitude in timm


def magnitudes(policy: str, height: int, width: int, bins: int = BINS) -> np.ndarray:
    """Return the magnitude of each of OPERATIONS at each bin, without its sign: f32[14, bins].

    Shears are slopes, translations are in pixels, and rotations in degrees. Brightness, color,
    contrast and sharpness are the difference of a factor from 1. Posterize is the number of bits to
    keep, and solarize a fraction of 255.

    Args:
      policy: "randaugment" (arXiv:1909.13719) | "trivialaugment" (arXiv:2103.10158), wide.
    """
    if policy == "randaugment":
        shear, turn, factor, lost_bits = 0.3, 30.0, 0.9, 4
        shift_x, shift_y = 150 / 331 * width, 150 / 331 * height  # 150 of AutoAugment's 331 pixels
    else:
        shear, turn, factor, lost_bits = 0.99, 135.0, 0.99, 6
        shift_x = shift_y = 32.0
    rows = {
        **dict.fromkeys(("shear_x", "shear_y"), _linspace(0.0, shear, bins)),
        "translate_x": np.trunc(_linspace(0.0, shift_x, bins)),  # whole pixels
        "translate_y": np.trunc(_linspace(0.0, shift_y, bins)),
        "rotate": _linspace(0.0, turn, bins),
        **dict.fromkeys(
            ("brightness", "color", "contrast", "sharpness"), _linspace(0.0, factor, bins)
        ),
        "posterize": 8 - np.round(np.arange(bins) * lost_bits / (bins - 1)),
        "solarize": _linspace(1.0, 0.0, bins),
    }
    return np.array([rows.get(name, np.zeros(bins)) for name in OPERATIONS], np.float32)


def _linspace(start: float, end: float, bins: int) -> np.ndarray:
    """Return f32[bins], rounded like torch.linspace: in float32 steps from the nearer end."""
    step = float(np.float32(end - start) / np.float32(bins - 1))
    at = np.arange(bins)
    up, down = start + step * at, float(np.float32(end)) - step * (bins - 1 - at)
    return np.where(at < bins // 2, up, down).astype(np.float32)


def apply(
    images: jax.Array,
    operation: jax.Array,
    magnitude: jax.Array,
    interpolation: str = "nearest",
    fill: tuple[float, ...] | None = None,
) -> jax.Array:
    """Apply an operation to each image.

    Args:
      images: u8[B, H, W, 3].
      operation: i32[B], an index of EVERY.
      magnitude: f32[B], signed, in the units of `magnitudes`; for solarize_add, in levels.
      interpolation, fill: of the geometric operations; see `operations.affine`.

    Returns:
      u8[B, H, W, 3].
    """
    images = _move(images, operation, magnitude, interpolation, fill)
    images = _blend(images, operation, magnitude)
    return _look_up(images, operation, magnitude)


def _is(operation: jax.Array, *names: str) -> jax.Array:
    """Return whether each operation is one of `names`: bool[B, 1, 1, 1]."""
    numbers = [EVERY.index(name) for name in names]
    return operations.per_image(jnp.isin(operation, jnp.asarray(numbers)))


def _move(
    images: jax.Array,
    operation: jax.Array,
    magnitude: jax.Array,
    interpolation: str,
    fill: tuple[float, ...] | None,
) -> jax.Array:
    zero = jnp.zeros_like(magnitude)
    matrices = {
        "shear_x": operations.shear_x(magnitude, images.shape[1]),
        "shear_y": operations.shear_y(magnitude, images.shape[2]),
        "translate_x": operations.translate(magnitude, zero),
        "translate_y": operations.translate(zero, magnitude),
        "rotate": operations.rotate(magnitude),
    }
    matrix = operations.translate(zero, zero)
    for name, candidate in matrices.items():
        matrix = jnp.where(_is(operation, name)[..., 0], candidate, matrix)
    moved = operations.affine(images, matrix, interpolation, fill)
    return jnp.where(_is(operation, *matrices), moved, images)


def _blend(images: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
    gray = operations.grayscale(images).astype(jnp.float32)
    other = jnp.where(_is(operation, "color"), gray, operations.mean_gray(images))
    changed = jnp.where(
        _is(operation, "sharpness"),
        operations.sharpness(images, magnitude),
        operations.to_bytes(operations.mixture(images, other, magnitude)),
    )
    return jnp.where(_is(operation, "color", "contrast", "sharpness"), changed, images)


def _look_up(images: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
    ramp = jnp.arange(256, dtype=jnp.uint8)[None, :, None, None]
    ramp = jnp.broadcast_to(ramp, (len(images), 256, 1, 3))
    tables = {
        "brightness": operations.brightness(ramp, magnitude),
        "posterize": operations.posterize(ramp, magnitude.astype(jnp.int32)),
        "solarize": operations.solarize(ramp, 255.0 * magnitude),
        "autocontrast": operations.autocontrast_table(images)[:, :, None],
        "equalize": operations.equalize_table(images)[:, :, None],
        "invert": operations.invert(ramp),
        "solarize_add": operations.solarize_add(ramp, magnitude),
    }
    table = ramp
    for name, candidate in tables.items():
        table = jnp.where(_is(operation, name), candidate, table)
    return operations.lookup(images, table[:, :, 0])


def randaugment(
    images: jax.Array,
    key: jax.Array,
    num_ops: int = 2,
    magnitude: int = 9,
    interpolation: str = "nearest",
) -> jax.Array:
    """Apply `num_ops` random operations to each image, all with the same magnitude.

    Args:
      images: u8[B, H, W, 3].
      magnitude: 0 to 30.
    """
    bins = jnp.full(images.shape[:1], magnitude)
    table = magnitudes("randaugment", *images.shape[1:3])

    def body(images: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        operation, signed = _draw(key, table, bins)
        return apply(images, operation, signed, interpolation), None

    return jax.lax.scan(body, images, jax.random.split(key, num_ops))[0]


def trivialaugment(images: jax.Array, key: jax.Array, interpolation: str = "nearest") -> jax.Array:
    """Apply an operation of uniformly random magnitude to each image u8[B, H, W, 3]."""
    bin_key, key = jax.random.split(key)
    bins = jax.random.randint(bin_key, images.shape[:1], 0, BINS)
    table = magnitudes("trivialaugment", *images.shape[1:3])
    return apply(images, *_draw(key, table, bins), interpolation)


def _draw(key: jax.Array, table: np.ndarray, bins: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draw (operation i32[B], signed magnitude f32[B]), given the bins i32[B] of magnitudes."""
    operation_key, sign_key = jax.random.split(key)
    operation = jax.random.randint(operation_key, bins.shape, 0, len(OPERATIONS))
    negative = jax.random.bernoulli(sign_key, 0.5, bins.shape) & (operation < SIGNED)
    value = jnp.asarray(table)[operation, bins]
    return operation, jnp.where(negative, -value, value)


def randaugment_timm(
    images: jax.Array,
    key: jax.Array,
    num_ops: int = 2,
    magnitude: float = 7.0,
    deviation: float = 0.5,
    interpolation: str = "bilinear",
    fill: tuple[float, ...] | None = None,
    increasing: bool = True,
) -> jax.Array:
    """Draw `num_ops` operations for each image, and apply each with probability 1/2.

    The defaults are timm's `rand-m7-mstd0.5-inc1` ("ResNet strikes back", Wightman et al. 2021,
    arXiv:2110.00476, and timm's auto_augment.py). Unlike in the paper and in torchvision, the
    magnitude varies between images, and invert and solarize-add are among the operations. timm
    draws bilinear or bicubic interpolation for each image; here it is fixed.

    Args:
      images: u8[B, H, W, 3].
      magnitude, deviation: mean and standard deviation of the magnitude, which is drawn for each
        image and operation, and clipped to 0..10.
      fill: color of areas that are moved in from outside; timm uses the mean of the data.
      increasing: timm's `inc1`; see `timm_amounts`.
    """
    count, height, width = images.shape[:3]

    def body(images: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        which, done, sign, normal = jax.random.split(key, 4)
        level = magnitude + deviation * jax.random.normal(normal, (count,))
        negative = jax.random.bernoulli(sign, 0.5, (count,))
        level = jnp.clip(level, 0.0, TIMM_HIGHEST)
        values = timm_amounts(level, negative, height, width, increasing)
        index = jax.random.randint(which, (count,), 0, len(TIMM_OPERATIONS))
        amount = jnp.stack([values[name] for name in TIMM_OPERATIONS])[index, jnp.arange(count)]
        operation = jnp.asarray([EVERY.index(name) for name in TIMM_OPERATIONS])[index]
        operation = jnp.where(jax.random.bernoulli(done, 0.5, (count,)), operation, 0)
        return apply(images, operation, amount, interpolation, fill), None

    return jax.lax.scan(body, images, jax.random.split(key, num_ops))[0]


def timm_amounts(
    magnitude: jax.Array, negative: jax.Array, height: int, width: int, increasing: bool = True
) -> dict[str, jax.Array]:
    """Return the amount of each of TIMM_OPERATIONS, as `apply` takes it.

    Args:
      magnitude: f32[B], 0 to 10.
      negative: bool[B], whether operations with a sign have a negative amount.
      increasing: stronger magnitudes make all operations stronger, as in timm's `inc1`. Otherwise,
        posterize and solarize become weaker, and the factors of color, contrast, brightness and
        sharpness rise from 0.1 to 1.9, as in TensorFlow's code for EfficientNet.
    """
    share = magnitude / TIMM_HIGHEST
    signed = jnp.where(negative, -share, share)
    bits, threshold = jnp.floor(4.0 * share), jnp.floor(256.0 * share)
    change = 1.8 * share - 0.9
    if increasing:
        bits, threshold = 4.0 - bits, 256.0 - threshold
        change = jnp.maximum(0.1 - 1.0, 0.9 * signed)  # the factor 1 + change is at least 0.1
    return {
        **dict.fromkeys(("autocontrast", "equalize", "invert"), jnp.zeros_like(share)),
        "rotate": 30.0 * signed,
        "posterize": bits,
        # The threshold is an integer; subtract half a level to stay away from rounding.
        "solarize": (threshold - 0.5) / 255.0,
        "solarize_add": jnp.floor(110.0 * share),
        **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), change),
        **dict.fromkeys(("shear_x", "shear_y"), 0.3 * signed),
        "translate_x": 0.45 * width * signed,
        "translate_y": 0.45 * height * signed,
    }
