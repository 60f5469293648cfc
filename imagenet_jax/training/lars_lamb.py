"""LARS and LAMB, which scale the learning rate of each array by norm(weights) / norm(update).

An array is one kernel, bias or norm parameter ("layer" in the papers). Arrays outside `mask`
(biases and norm parameters, see `optim.decay_mask`) have no weight decay and no scaling: they take
plain momentum or Adam steps, as in the skip list of MLPerf's reference and in LAMB's
exclude_from_weight_decay.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from imagenet_jax.training.optim import masked


def lars(
    optim: ConfigDict, schedule: optax.Schedule, mask: Any = None
) -> optax.GradientTransformation:
    """Return LARS (You et al. 2017, arXiv:1708.03888, algorithm 1) as in MLPerf's ResNet-50.

    With gradient g, weights w, trust coefficient c, decay d and learning rate r,
        v <- momentum * v + r * c * |w| / (|g| + d * |w|) * (g + d * w),    w <- w - v
    and the factor c * |w| / (...) is 1 if |w| or |g| is 0. Unlike in this package's SGD, the
    learning rate is applied before the momentum.

    optax.lars divides by |g + d * w|, unlike the paper and MLPerf.
    """
    return optax.chain(
        masked(_scale_by_lars_ratio(optim.trust_coefficient, optim.weight_decay), mask),
        optax.scale_by_learning_rate(schedule),
        optax.trace(decay=optim.momentum, nesterov=optim.nesterov),
    )


def lamb(
    optim: ConfigDict, schedule: optax.Schedule, mask: Any = None
) -> optax.GradientTransformation:
    """Return LAMB (You et al. 2019, arXiv:1904.00962, algorithm 2, with phi the identity).

    With Adam's bias-corrected step a = m / (sqrt(v) + eps), weights w, decay d and rate r,
        u = a + d * w,    w <- w - r * |w| / |u| * u
    and |w| / |u| is 1 if either norm is 0. timm's Lamb also clips the gradient to a global norm of
    1; set config.optim.grad_clip_norm for that.
    """
    return optax.chain(
        optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.eps),
        optax.add_decayed_weights(optim.weight_decay, mask=mask),
        masked(optax.scale_by_trust_ratio(), mask),
        optax.scale_by_learning_rate(schedule),
    )


def _scale_by_lars_ratio(coefficient: float, decay: float) -> optax.GradientTransformation:
    def scale(g: jax.Array, w: jax.Array) -> jax.Array:
        w_norm, g_norm = jnp.linalg.norm(w.ravel()), jnp.linalg.norm(g.ravel())
        usable = (w_norm > 0) & (g_norm > 0)
        ratio = coefficient * w_norm / jnp.where(usable, g_norm + decay * w_norm, 1.0)
        return jnp.where(usable, ratio, 1.0) * (g + decay * w)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        # tree.map skips masked arrays: each is an optax.MaskedNode, an empty subtree.
        return jax.tree.map(scale, grads, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
