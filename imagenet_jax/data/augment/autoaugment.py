"""AutoAugment with the policy learned on ImageNet (Cubuk et al. 2018, arXiv:1805.09501).

The policy is table 9 of the paper, with the magnitudes of torchvision's AutoAugmentPolicy.IMAGENET.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imagenet_jax.data.augment.randaugment import EVERY, OPERATIONS, SIGNED, apply, magnitudes

BINS = 10  # magnitudes from 0 (weakest) to 9
# Each has two steps: operation, probability, bin of the magnitude (0 if there is none).
SUB_POLICIES = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 0), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 0)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 0)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 0), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 0)),
    (("equalize", 0.0, 0), ("equalize", 0.8, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 0)),
    (("color", 0.4, 0), ("equalize", 0.6, 0)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
)


class Draws(NamedTuple):
    """The random choices for each image.

    Attributes:
      sub_policy: i32[B], an index of SUB_POLICIES.
      done: bool[B, 2], whether each step is applied.
      negative: bool[B, 2], whether the magnitude of each step is negative, if it has a sign.
    """

    sub_policy: jax.Array
    done: jax.Array
    negative: jax.Array


def draw(key: jax.Array, count: int) -> Draws:
    """Draw sub-policies uniformly, whether to apply each step, and signs."""
    which, done, sign = jax.random.split(key, 3)
    sub_policy = jax.random.randint(which, (count,), 0, len(SUB_POLICIES))
    probability = jnp.asarray([[step[1] for step in steps] for steps in SUB_POLICIES])[sub_policy]
    return Draws(
        sub_policy,
        jax.random.bernoulli(done, probability),
        jax.random.bernoulli(sign, 0.5, (count, 2)),
    )


def amounts(height: int, width: int) -> np.ndarray:
    """Return the magnitude of each step of SUB_POLICIES, as `apply` takes it: f32[25, 2]."""
    table = dict(zip(OPERATIONS, magnitudes("randaugment", height, width, BINS), strict=True))
    table["invert"] = np.zeros(BINS, np.float32)
    return np.array([[table[name][at] for name, _, at in steps] for steps in SUB_POLICIES])


def run(images: jax.Array, draws: Draws, interpolation: str) -> jax.Array:
    """Return each image u8[B, H, W, 3] after the two steps of its sub-policy."""
    numbers = jnp.asarray([[EVERY.index(step[0]) for step in steps] for steps in SUB_POLICIES])
    operation = numbers[draws.sub_policy]
    amount = jnp.asarray(amounts(*images.shape[1:3]))[draws.sub_policy]
    amount = jnp.where(draws.negative & (operation < SIGNED), -amount, amount)
    operation = jnp.where(draws.done, operation, EVERY.index("identity"))

    def body(images: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return apply(images, *step, interpolation), None

    return jax.lax.scan(body, images, (operation.T, amount.T))[0]


def autoaugment(images: jax.Array, key: jax.Array, interpolation: str = "nearest") -> jax.Array:
    """Apply a random sub-policy to each image u8[B, H, W, 3]."""
    return run(images, draw(key, len(images)), interpolation)
