"""RandAugment as timm draws it (`rand-m7-mstd0.5-inc1`), by which its ResNets were trained.

From "ResNet strikes back" (Wightman et al. 2021, arXiv:2110.00476) and timm's auto_augment.py, with
the increasing magnitudes that "inc1" stands for. It differs from the paper's, and torchvision's, in
that an operation is drawn and then done with probability 1/2, its magnitude varies from image to
image, and invert and solarize-add are among the operations. timm draws bilinear or bicubic
interpolation for each image; here it is one of the config's.
"""

import jax
import jax.numpy as jnp

from imagenet_jax.data.augment import randaugment as policies

OPERATIONS = (
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add",
    "color", "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x",
    "translate_y",
)  # fmt: skip
HIGHEST = 10.0  # magnitude


def amounts(
    magnitude: jax.Array, negative: jax.Array, height: int, width: int
) -> dict[str, jax.Array]:
    """What each of OPERATIONS does at f32[B] magnitudes from 0 to 10, in `policies.apply`'s units.

    Args:
      negative: bool[B], the sign of operations that go either way.
    """
    share = magnitude / HIGHEST
    signed = jnp.where(negative, -share, share)
    change = jnp.maximum(0.1 - 1.0, 0.9 * signed)  # of a factor that is 0.1 or more
    none = jnp.zeros_like(share)
    return {
        "autocontrast": none,
        "equalize": none,
        "invert": none,
        "rotate": 30.0 * signed,
        "posterize": 4.0 - jnp.floor(4.0 * share),
        # The threshold is a whole level; half a level less keeps rounding away from it.
        "solarize": (255.5 - jnp.floor(256.0 * share)) / 255.0,
        "solarize_add": jnp.floor(110.0 * share),
        "color": change,
        "contrast": change,
        "brightness": change,
        "sharpness": change,
        "shear_x": 0.3 * signed,
        "shear_y": 0.3 * signed,
        "translate_x": 0.45 * width * signed,
        "translate_y": 0.45 * height * signed,
    }


def randaugment(
    images: jax.Array,
    key: jax.Array,
    num_ops: int = 2,
    magnitude: float = 7.0,
    deviation: float = 0.5,
    interpolation: str = "bilinear",
    fill: tuple[float, ...] | None = None,
) -> jax.Array:
    """`num_ops` draws one after the other on each image, each done with probability 1/2.

    Args:
      images: u8[B, H, W, 3].
      magnitude, deviation: of the normal distribution of magnitudes, which end at 0 and 10.
      fill: the color outside an image that is moved; timm's is the mean of the data.

    Returns:
      u8[B, H, W, 3].
    """
    count, height, width = images.shape[:3]

    def body(images: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        which, done, sign, normal = jax.random.split(key, 4)
        level = magnitude + deviation * jax.random.normal(normal, (count,))
        values = amounts(
            jnp.clip(level, 0.0, HIGHEST),
            jax.random.bernoulli(sign, 0.5, (count,)),
            height,
            width,
        )
        index = jax.random.randint(which, (count,), 0, len(OPERATIONS))
        amount = jnp.stack([values[name] for name in OPERATIONS])[index, jnp.arange(count)]
        operation = jnp.asarray([policies.EVERY.index(name) for name in OPERATIONS])[index]
        operation = jnp.where(jax.random.bernoulli(done, 0.5, (count,)), operation, 0)
        return policies.apply(images, operation, amount, interpolation, fill), None

    return jax.lax.scan(body, images, jax.random.split(key, num_ops))[0]
