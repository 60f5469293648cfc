"""Mixup and CutMix, which mix two images, and their labels in the same proportion.

Mixup is from Zhang et al. 2018, arXiv:1710.09412. Both compute `w * image + (1 - w) * partner` with
weights w that are drawn once per batch: a constant for mixup, and 1 outside and 0 inside a box for
CutMix. As in torchvision, the partner of image i is image i - 1, and that of image 0 is the last
image. In a batch that is sharded over devices, each device sends one row to the next device.
"""

import jax
import jax.numpy as jnp


def cutmix_weight(lam: jax.Array, key: jax.Array, height: int, width: int) -> jax.Array:
    """Return 1 outside and 0 inside a box: f32[height, width] (Yun et al. 2019, arXiv:1905.04899).

    The sides of the box are sqrt(1 - lam) times those of the image. Its center is uniform over the
    pixels, and it is clipped to the image (section 3.1), so the mean of the result is at least lam.
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
    """Mix each image and target with those of its partner.

    Args:
      images: f32[B, H, W, C].
      targets: f32[B, K], distributions over classes.
      weight: f32[H, W] in [0, 1], the weight of the image; 1 - weight is that of its partner.
      kept: f32[], the mean of `weight`: the weight of the target of the image.
      valid: [B], 0 for a row without an image. An image with such a partner is not mixed.

    Returns:
      (images, targets) of the same shapes.
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
    batch: tuple[jax.Array, jax.Array],
    key: jax.Array,
    mixup: float,
    cutmix: float,
    switch: float,
    probability: float,
    valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Apply mixup or CutMix to a batch, with one lam ~ Beta(alpha, alpha).

    Args:
      batch: images f32[B, H, W, C], and targets f32[B, K], distributions over classes.
      mixup, cutmix: their alphas, not both 0; 0 is off.
      switch: probability of CutMix instead of mixup, if both are on.
      probability: probability of mixing the batch.
      valid: [B], 0 for rows without an image.

    Returns:
      (images, targets) of the same shapes.
    """
    images, targets = batch
    active_key, switch_key, lam_key, box_key = jax.random.split(key, 4)
    switch = switch if mixup > 0 and cutmix > 0 else float(cutmix > 0)
    cut = jax.random.bernoulli(switch_key, switch)
    alpha = jnp.where(cut, cutmix, mixup)
    # Rounding may move lam out of [0, 1] if alpha is small, and makes it NaN if alpha is tiny.
    lam = jnp.clip(jnp.nan_to_num(jax.random.beta(lam_key, alpha, alpha), nan=1.0), 0.0, 1.0)
    active = jax.random.bernoulli(active_key, probability)
    lam = jnp.where(active, lam, 1.0)
    box = cutmix_weight(lam, box_key, *images.shape[1:3])
    weight = jnp.where(cut, box, lam)
    return blend(images, targets, weight, jnp.where(cut, box.mean(), lam), valid)
