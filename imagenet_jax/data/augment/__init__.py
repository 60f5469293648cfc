"""Augmentation on the accelerator, inside the train step: `apply` does everything.

An augmentation is a function in a module of this package, and an entry in one of the tables below.
"""

import importlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Augmentation(NamedTuple):
    """An augmentation that a config can turn on.

    Attributes:
      function: "module.function" of this package, imported only if the augmentation is on. It takes
        the images and a key.
      stream: constant that is folded into the step's key. Augmentations that can be on together
        have different ones. They are large, because flips use the step's key itself, whose random
        bits come from small counters.
      is_on: whether `config.augment` turns it on.
      arguments: names of the arguments after the key: fields of `config.augment`, "std" and "valid"
        of `apply`, or "mean_color", the mean on the scale 0 to 255.
    """

    function: str
    stream: int
    is_on: Callable[[Any], bool]
    arguments: tuple[str, ...]


def mixes(augment: Any) -> bool:
    """Return whether `config.augment` mixes images, so that targets are distributions."""
    return augment.mixup > 0 or augment.cutmix > 0


def _policy(function: str, *arguments: str) -> Augmentation:
    """Return the entry of a policy. The name of its function is the value of `auto_augment`."""
    name = function.split(".")[1]
    return Augmentation(function, 2**31, lambda augment: augment.auto_augment == name, arguments)


ON_BYTES = (  # u8[B, H, W, 3]
    _policy("randaugment.randaugment", "auto_num_ops", "auto_magnitude", "auto_interpolation"),
    _policy(
        "randaugment.randaugment_timm", "auto_num_ops", "auto_magnitude", "auto_magnitude_std",
        "auto_interpolation", "mean_color", "auto_increasing",
    ),
    _policy("randaugment_plain.randaugment_plain", "auto_num_ops", "auto_magnitude"),
    _policy("randaugment.trivialaugment", "auto_interpolation"),
    _policy("autoaugment.autoaugment", "auto_interpolation"),
    _policy("three_augment.three_augment"),
    Augmentation(
        "operations.jitter", 2**31 + 1, lambda augment: any(augment.color_jitter),
        ("color_jitter",),
    ),
)  # fmt: skip
ON_PIXELS = (  # f32[B, H, W, 3], normalized
    Augmentation(
        "operations.lighting", 2**31 + 2, lambda augment: augment.lighting > 0,
        ("lighting", "std"),
    ),
    Augmentation(
        "erasing.random_erasing", 2**31 + 3, lambda augment: augment.random_erase > 0,
        ("random_erase", "random_erase_fill"),
    ),
)  # fmt: skip
ON_BATCH = (  # (normalized pixels, targets f32[B, C])
    Augmentation(
        "mixing.mix", 2**31 + 4, mixes,
        ("mixup", "cutmix", "mix_switch_prob", "mix_prob", "valid"),
    ),
)  # fmt: skip


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

    The order is that of torchvision: flip, the policy of `auto_augment`, color jitter,
    normalization, random erasing, mixup or CutMix. Lighting is added after normalization, divided
    by `std`. Pixels are bytes until normalization, then float32.

    Args:
      images: u8[B, H, W, 3].
      labels: i32[B].
      key: of this step.
      augment: `config.augment`.
      num_classes: C.
      mean, std: of RGB in [0, 1].
      dtype: of the pixels returned.
      valid: [B], 0 for rows without an image. None: every row has an image.

    Returns:
      Pixels dtype[B, H, W, 3], and the labels i32[B] or, if images are mixed, the targets
      f32[B, C], whose rows sum to 1.
    """
    given = {"std": std, "valid": valid, "mean_color": tuple(round(255 * m) for m in mean)}

    def run(table: Iterable[Augmentation], images: Any) -> Any:
        for name, stream, is_on, arguments in table:
            if is_on(augment):
                module, function = name.split(".")
                function = getattr(importlib.import_module(f"{__name__}.{module}"), function)
                values = [given[a] if a in given else augment[a] for a in arguments]
                images = function(images, jax.random.fold_in(key, stream), *values)
        return images

    if augment.flip:
        flip = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
        images = jnp.where(flip, images[:, :, ::-1], images)
    pixels = run(ON_PIXELS, normalize(run(ON_BYTES, images), mean, std))
    if mixes(augment):
        pixels, labels = run(ON_BATCH, (pixels, jax.nn.one_hot(labels, num_classes)))
    return pixels.astype(dtype), labels
