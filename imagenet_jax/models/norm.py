"""Batch normalisation with torch's running statistics (Ioffe & Szegedy 2015, arXiv:1502.03167)."""

import jax
import jax.numpy as jnp
from flax import nnx

from imagenet_jax.errors import UserError


class BatchNorm(nnx.Module):
    """Normalises over all axes but the last.

    Training divides by the biased variance of the batch but keeps a running average of the
    unbiased one, n / (n - 1) times larger, as torch does and flax.nnx.BatchNorm does not: so that
    statistics, like weights, mean the same in both directions. Inside a jitted step whose batch is
    sharded the means are over the global batch.

    Moments are taken in float32 at least, in one pass (E[x^2] - E[x]^2) that XLA fuses into the
    producer of x.
    """

    def __init__(self, features: int, *, eps: float = 1e-5, momentum: float = 0.9):
        """`momentum` is flax's: new = momentum * old + (1 - momentum) * batch; torch's 0.1."""
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((features,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((features,), jnp.float32))
        self.eps, self.momentum = eps, momentum

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[..., C] -> [..., C] in the dtype of x; in training the statistics move.

        Raises UserError in training where a channel has one value, whose variance is undefined.
        """
        if train:
            n = x.size // x.shape[-1]
            if n < 2:
                raise UserError(
                    "batch norm sees one value per channel (one image, reduced to 1x1): use a "
                    "larger config.batch_size or config.augment.image_size"
                )
            wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            axes = tuple(range(x.ndim - 1))
            mean = jnp.mean(wide, axes)
            var = jnp.maximum(jnp.mean(jnp.square(wide), axes) - jnp.square(mean), 0.0)
            keep = self.momentum
            self.mean[...] = keep * self.mean[...] + (1 - keep) * mean
            self.var[...] = keep * self.var[...] + (1 - keep) * var * (n / (n - 1))
        else:
            mean, var = self.mean[...], self.var[...]
        scale = self.scale[...] * jax.lax.rsqrt(var + self.eps)
        shift = self.bias[...] - mean * scale
        return (x * scale + shift).astype(x.dtype)
