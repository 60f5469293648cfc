"""Batch norm with torch's running statistics (Ioffe & Szegedy 2015, arXiv:1502.03167), and group
norm (Wu & He 2018, arXiv:1803.08494)."""

import jax
import jax.numpy as jnp
from flax import nnx

from imagenet_jax.errors import UserError

GROUPS = 32  # of channels: the default of the group norm paper, and BiT's


class BatchNorm(nnx.Module):
    """Normalises over all axes but the last.

    Training divides by the biased variance of the batch but keeps a running average of the
    unbiased one, n / (n - 1) times larger, as torch does and flax.nnx.BatchNorm does not: so that
    statistics, like weights, mean the same in both directions. Inside a jitted step whose batch is
    sharded the means are over the global batch.

    With `images_per_group` the batch is normalised in groups of so many consecutive images, as by
    devices that do not talk to each other (Goyal et al. 2017, arXiv:1706.02677, section 2.3: 32
    images, whatever the batch size), and the running statistics follow the mean over groups.

    Moments are taken in float32 at least, in one pass (E[x^2] - E[x]^2) that XLA fuses into the
    producer of x.
    """

    def __init__(
        self,
        features: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.9,
        images_per_group: int = 0,
    ):
        """`momentum` is flax's: new = momentum * old + (1 - momentum) * batch; torch's 0.1.

        `images_per_group` 0 is one group, the batch.
        """
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((features,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((features,), jnp.float32))
        self.eps, self.momentum = eps, momentum
        self.images_per_group = images_per_group

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, ..., C] -> [B, ..., C] in the dtype of x; in training the statistics move.

        Raises UserError in training where a channel has one value, whose variance is undefined, and
        where the batch is not a multiple of the group.
        """
        if not train:
            return self._normalize(x, self.mean[...], self.var[...])
        size = self.images_per_group or x.shape[0]
        if x.shape[0] % size:
            raise UserError(
                f"a batch of {x.shape[0]} images cannot be normalised in groups of "
                f"config.model.bn_group = {size}"
            )
        groups = x.shape[0] // size
        n = x.size // x.shape[-1] // groups
        if n < 2:
            raise UserError(
                "batch norm sees one value per channel (one image, reduced to 1x1): use a "
                "larger config.batch_size, config.augment.image_size or config.model.bn_group"
            )
        # Without groups no axis is added, which would only hide from XLA that the sum is one.
        grouped = x if groups == 1 else x.reshape(groups, size, *x.shape[1:])
        wide = grouped.astype(jnp.promote_types(x.dtype, jnp.float32))
        axes = tuple(range(grouped.ndim - x.ndim, grouped.ndim - 1))
        mean = jnp.mean(wide, axes, keepdims=groups > 1)
        square = jnp.mean(jnp.square(wide), axes, keepdims=groups > 1)
        var = jnp.maximum(square - jnp.square(mean), 0.0)
        self._track(self.mean, mean)
        self._track(self.var, var * (n / (n - 1)))
        return self._normalize(grouped, mean, var).reshape(x.shape)

    def _track(self, average: nnx.BatchStat, value: jax.Array) -> None:
        value = jnp.mean(value.reshape(-1, value.shape[-1]), 0) if value.ndim > 1 else value
        average[...] = self.momentum * average[...] + (1 - self.momentum) * value

    def _normalize(self, x: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
        scale = self.scale[...] * jax.lax.rsqrt(var + self.eps)
        shift = self.bias[...] - mean * scale
        return (x * scale + shift).astype(x.dtype)


class GroupNorm(nnx.Module):
    """Normalises each image over its pixels and each of 32 runs of consecutive channels.

    Epsilon 1e-5 is torch's and BiT's.
    """

    def __init__(self, features: int, *, eps: float = 1e-5):
        """Raises UserError unless `features` is a multiple of 32."""
        if features % GROUPS:
            raise UserError(
                f"group norm divides channels into {GROUPS} groups, which {features} channels do "
                "not fill: use a larger config.model.width, such as 1.0, or norm 'batch'"
            )
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.eps = eps

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C] in the dtype of x, in training and evaluation alike."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        grouped = wide.reshape(x.shape[0], -1, GROUPS, x.shape[-1] // GROUPS)
        mean = jnp.mean(grouped, (1, 3), keepdims=True)
        var = jnp.mean(jnp.square(grouped - mean), (1, 3), keepdims=True)
        normal = ((grouped - mean) * jax.lax.rsqrt(var + self.eps)).reshape(x.shape)
        return (normal * self.scale[...] + self.bias[...]).astype(x.dtype)
