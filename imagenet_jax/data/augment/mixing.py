"""Mixup and cutmix: two images in one, and their labels in the same proportion.

Both are one weighted sum, `w * image + (1 - w) * partner`, whose weights w over the pixels are
drawn once for the whole batch: constant for mixup, 1 outside and 0 inside a box for cutmix.
The partner of image i is image i - 1, that of image 0 the last one, as in torchvision. So each
image is a partner once, and on a batch sharded over devices one row moves from each to the next.
"""

import jax
import jax.numpy as jnp


def mixup_weight(lam: jax.Array, height: int, width: int) -> jax.Array:
    """The constant lam as f32[height, width] (Zhang et al. 2018, arXiv:1710.09412, section 2)."""
    return jnp.full((height, width), lam, jnp.float32)


def cutmix_weight(lam: jax.Array, key: jax.Array, height: int, width: int) -> jax.Array:
    """1 outside and 0 inside a box, f32[height, width] (Yun et al. 2019, arXiv:1905.04899).

    The box has sides sqrt(1 - lam) times those of the image, its center is uniform over the
    pixels, and what lies outside the image is cut off (section 3.1). So the share of the image
    that is kept is lam or more: it is the mean of what is returned.
    """
    y_key, x_key = jax.random.split(key)
    radius = 0.5 * jnp.sqrt(1.0 - lam)

    def inside(key: jax.Array, length: int) -> jax.Array:
        center = jax.random.randint(key, (), 0, length)
        half = (radius * length).astype(jnp.int32)
        at = jnp.arange(length)
        return (at >= center - half) & (at < center + half)

    box = inside(y_key, height)[:, None] & inside(x_key, width)[None, :]
    return jnp.where(box, 0.0, 1.0)


def blend(
    images: jax.Array,
    targets: jax.Array,
    weight: jax.Array,
    kept: jax.Array,
    valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Each image and target with its partner's.

    Args:
      images: f32[B, H, W, C].
      targets: f32[B, K], distributions over classes.
      weight: f32[H, W] in [0, 1], of the image's own pixels.
      kept: f32[], the mean of `weight`: of the image's own target.
      valid: [B], 0 for a row that holds no image; an image whose partner that is stays as it is.

    Returns:
      Images and targets of the same shapes.
    """
    w, kept = weight[None, :, :, None], jnp.full((1, 1), kept)
    if valid is not None:
        alone = jnp.roll(valid, 1) == 0
        w = jnp.where(alone[:, None, None, None], 1.0, w)
        kept = jnp.where(alone[:, None], 1.0, kept)
    return (
        w * images + (1.0 - w) * jnp.roll(images, 1, axis=0),
        kept * targets + (1.0 - kept) * jnp.roll(targets, 1, axis=0),
    )


def mix(
    images: jax.Array,
    targets: jax.Array,
    key: jax.Array,
    *,
    mixup: float,
    cutmix: float,
    switch: float,
    probability: float,
    valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Mixup or cutmix of a batch, with lam ~ Beta(alpha, alpha) drawn once.

    Args:
      images: f32[B, H, W, C].
      targets: f32[B, K], distributions over classes.
      mixup, cutmix: their alphas; 0 is off, and one of them is not.
      switch: the share of mixed batches that cutmix gets, where both are on.
      probability: the share of batches that are mixed.
      valid: [B], 0 for rows that hold no image.

    Returns:
      (images, targets) of the same shapes.
    """
    active_key, switch_key, lam_key, box_key = jax.random.split(key, 4)
    share = switch if mixup > 0 and cutmix > 0 else float(cutmix > 0)
    cut = jax.random.bernoulli(switch_key, share)
    alpha = jnp.where(cut, cutmix, mixup)
    # Rounding may take lam out of [0, 1] where alpha is small, and 0 / 0 where it is tiny.
    lam = jnp.clip(jnp.nan_to_num(jax.random.beta(lam_key, alpha, alpha), nan=1.0), 0.0, 1.0)
    active = jax.random.bernoulli(active_key, probability)
    lam = jnp.where(active, lam, 1.0)
    height, width = images.shape[1:3]
    box = cutmix_weight(lam, box_key, height, width)
    weight = jnp.where(cut, box, mixup_weight(lam, height, width))
    return blend(images, targets, weight, jnp.where(cut, box.mean(), lam), valid)
