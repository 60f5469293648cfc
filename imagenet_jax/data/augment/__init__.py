"""Augmentation on the accelerator, inside the train step. `apply` does all of it.

Each augmentation is one module here, which is imported only if the config turns it on.
"""

from typing import Any

import jax
import jax.numpy as jnp

# The flips use the step's key itself, whose random bits come from small counters. All other keys
# are folded from it with these constants, which are far from those counters.
_AUTO, _JITTER, _LIGHTING, _ERASE, _MIX = range(2**31, 2**31 + 5)


def normalize(
    images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: str = "float32"
) -> jax.Array:
    """Return (images / 255 - mean) / std as dtype[B, H, W, 3], computed in float32.

    Args:
      images: u8[B, H, W, 3].
    """
    scale = 1.0 / (255.0 * jnp.asarray(std, jnp.float32))
    shift = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) * scale - shift).astype(dtype)


def random_flip(images: jax.Array, key: jax.Array) -> jax.Array:
    """Return images [B, H, W, C], each mirrored left to right with probability one half."""
    flip = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)


def mixes(augment: Any) -> bool:
    """Return whether `config.augment` mixes images, so that targets are distributions."""
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
    """Return the augmented and normalized batch that the model is trained on.

    The order is torchvision's: flip, RandAugment or TrivialAugment, color jitter, lighting,
    normalization, erasing, mixup or cutmix. Pixels are bytes up to the jitter, then float32.

    Args:
      images: u8[B, H, W, 3].
      labels: i32[B].
      key: of this step.
      augment: `config.augment`.
      num_classes: C.
      mean, std: of RGB in [0, 1].
      dtype: of the pixels returned.
      valid: [B], 0 for rows without an image; None: all rows have one.

    Returns:
      Pixels dtype[B, H, W, 3], and the labels i32[B] or, if images are mixed, the targets
      f32[B, C], whose rows sum to 1.
    """

    def part(name: int) -> jax.Array:
        return jax.random.fold_in(key, name)

    if augment.flip:
        images = random_flip(images, key)
    if augment.auto_augment == "randaugment":
        from imagenet_jax.data.augment import randaugment

        images = randaugment.randaugment(
            images,
            part(_AUTO),
            augment.auto_num_ops,
            augment.auto_magnitude,
            augment.auto_interpolation,
        )
    elif augment.auto_augment == "randaugment_timm":
        from imagenet_jax.data.augment import randaugment_timm

        images = randaugment_timm.randaugment(
            images,
            part(_AUTO),
            augment.auto_num_ops,
            augment.auto_magnitude,
            augment.auto_magnitude_std,
            augment.auto_interpolation,
            tuple(round(255 * m) for m in mean),
        )
    elif augment.auto_augment == "trivialaugment":
        from imagenet_jax.data.augment import randaugment

        images = randaugment.trivialaugment(images, part(_AUTO), augment.auto_interpolation)
    if any(augment.color_jitter):
        from imagenet_jax.data.augment import color

        images = color.jitter(images, part(_JITTER), augment.color_jitter)
    pixels = normalize(images, mean, std)
    if augment.lighting > 0:
        from imagenet_jax.data.augment import color

        shift = color.lighting(part(_LIGHTING), len(images), augment.lighting)
        pixels = pixels + shift / jnp.asarray(std, jnp.float32)
    if augment.random_erase > 0:
        from imagenet_jax.data.augment import erasing

        pixels = erasing.random_erasing(
            pixels, part(_ERASE), augment.random_erase, augment.random_erase_fill
        )
    if not mixes(augment):
        return pixels.astype(dtype), labels
    from imagenet_jax.data.augment import mixing

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
