"""Stochastic depth (Huang et al. 2016, arXiv:1603.09382): residual branches left out at random."""

import jax
import jax.numpy as jnp


def drop_path(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """f[B, ...] -> f[B, ...]: each row is 0 with probability `rate`, else x / (1 - rate).

    So the expectation is x, and evaluation needs no factor where the paper scales there instead.
    Rows are drawn independently, as torchvision's StochasticDepth does in mode "row".
    """
    keep = 1.0 - rate
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    kept = jax.random.bernoulli(key, keep, shape)
    return jnp.where(kept, x / keep, jnp.zeros((), x.dtype)).astype(x.dtype)


def linear_rates(last: float, blocks: int) -> list[float]:
    """The rate of each block, from 0 at the first to `last` at the last.

    The paper's linear rule has block l of L at last * l / L, so that the first is dropped too; this
    is last * (l - 1) / (L - 1), the form of timm, whose published recipes the configs follow.
    """
    return [last * i / max(1, blocks - 1) for i in range(blocks)]
