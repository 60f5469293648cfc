"""What is done to pixels and labels on the accelerator, inside the step: `apply` is all of it."""

from typing import Any

import jax
import jax.numpy as jnp

from imagenet_jax.data.augment import color, erasing, mixing
from imagenet_jax.data.augment import randaugment as policies
from imagenet_jax.data.augment import randaugment_timm as timm_policy

# Each augmentation's key is folded from the step's by one of these, far from the small numbers
# by which the flips of single images are told apart.
_AUTO, _JITTER, _LIGHTING, _ERASE, _MIX = range(2**31, 2**31 + 5)


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


def mixes(augment: Any) -> bool:
    """Whether `config.augment` mixes images, so that targets are distributions."""
    return augment.mixup > 0 or augment.cutmix > 0


def apply(
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    augment: Any,
    *,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: str = "float32",
    valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """A batch as the model is trained on it.

    In torchvision's order: flip, RandAugment or TrivialAugment, color jitter, lighting,
    normalization, erasing, mixup or cutmix. Up to the jitter pixels are bytes, then float32.

    Args:
      images: u8[B, H, W, 3].
      labels: i32[B].
      key: of this step.
      augment: `config.augment`.
      num_classes: C.
      mean, std: of RGB in [0, 1].
      dtype: of the pixels returned.
      valid: [B], 0 for rows that hold no image; None: all do.

    Returns:
      Pixels dtype[B, H, W, 3], and the labels i32[B], or where images are mixed the targets
      f32[B, C], whose rows sum to 1.
    """

    def part(name: int) -> jax.Array:
        return jax.random.fold_in(key, name)

    if augment.flip:
        images = random_flip(images, key)
    if augment.auto_augment == "randaugment":
        images = policies.randaugment(
            images,
            part(_AUTO),
            augment.auto_num_ops,
            augment.auto_magnitude,
            augment.auto_interpolation,
        )
    elif augment.auto_augment == "randaugment_timm":
        images = timm_policy.randaugment(
            images,
            part(_AUTO),
            augment.auto_num_ops,
            augment.auto_magnitude,
            augment.auto_magnitude_std,
            augment.auto_interpolation,
            tuple(round(255 * m) for m in mean),
        )
    elif augment.auto_augment == "trivialaugment":
        images = policies.trivialaugment(images, part(_AUTO), augment.auto_interpolation)
    if any(augment.color_jitter):
        images = color.jitter(images, part(_JITTER), augment.color_jitter)
    pixels = normalize(images, mean, std)
    if augment.lighting > 0:
        shift = color.lighting(part(_LIGHTING), len(images), augment.lighting)
        pixels = pixels + shift / jnp.asarray(std, jnp.float32)
    if augment.random_erase > 0:
        pixels = erasing.random_erasing(
            pixels, part(_ERASE), augment.random_erase, augment.random_erase_fill
        )
    if not mixes(augment):
        return pixels.astype(dtype), labels
    pixels, targets = mixing.mix(
        pixels,
        jax.nn.one_hot(labels, num_classes),
        part(_MIX),
        mixup=augment.mixup,
        cutmix=augment.cutmix,
        switch=augment.mix_switch_prob,
        probability=augment.mix_prob,
        valid=valid,
    )
    return pixels.astype(dtype), targets
