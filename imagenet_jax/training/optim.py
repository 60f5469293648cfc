"""Optimizers, gradient clipping and weight decay, built from optax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from ml_collections import ConfigDict

from imagenet_jax.config.fields import SCHEDULE_FREE
from imagenet_jax.errors import UserError
from imagenet_jax.training.layer_groups import (
    NO_TUNING,
    FineTuning,
    head_first,
    head_mask,
    scale_layers,
    zero_frozen,
)  # fmt: skip


def decay_mask(params: Any) -> Any:
    """Return a tree with True for kernels and False for biases, norm parameters and embeddings."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make_optimizer(
    optim: ConfigDict, schedule: optax.Schedule, tuning: FineTuning = NO_TUNING
) -> optax.GradientTransformation:
    """Return the optimizer of `config.optim`.

    It applies gradient clipping, L1 decay, L2 decay, the update rule, decoupled decay and the
    learning rate, in this order. With "l2" decay, SGD and Adam equal torch.optim.SGD and Adam (the
    decay enters the momentum); with "decoupled" decay, they are SGDW and AdamW (Loshchilov & Hutter
    2019, arXiv:1711.05101), whose decay is scaled by the learning rate. The other rules are
    described in `lars`, `lamb`, `rmsprop`, `muon` and `schedule_free`. Lion is that of Chen et al.
    2023 (arXiv:2302.06675).

    `tuning` has the layers that are frozen at first, and the factors of their learning rates.
    """
    mask = None if optim.decay_bias_and_norm else decay_mask
    parts = clipping(optim, tuning)
    l1 = optax.stateless_with_tree_map(lambda g, w: g + optim.l1 * jnp.sign(w))  # 0 at w = 0
    first = [_masked(l1, mask)] if optim.l1 else []
    if optim.name in ("lars", "lamb"):
        make_rule = lars if optim.name == "lars" else lamb
        parts.append(optax.chain(*first, make_rule(optim, schedule, mask)))
    else:
        rule = optax.chain(*first, *_decayed_rule(optim, mask, tuning))
        parts.append(head_first(rule, tuning) if tuning.frozen_steps else rule)
        # Not in `rule`: the schedule counts steps, and frozen layers do not run `rule`.
        parts.append(optax.scale_by_learning_rate(schedule))
        if _is_tensorflow_rmsprop(optim):
            parts.append(optax.trace(decay=optim.momentum))
    if tuning.layer_decay != 1.0:
        parts.append(scale_layers(tuning))
    tx = optax.chain(*parts)
    return schedule_free(tx, schedule, optim.b1) if optim.name in SCHEDULE_FREE else tx


def gradient_point(params: Any, opt_state: Any) -> Any:
    """Return the parameters at which to take the gradient: `params`, except in `schedule_free`."""
    if not isinstance(opt_state, optax.contrib.ScheduleFreeState):
        return params
    return optax.incremental_update(params, opt_state.z, opt_state.b1)


def schedule_free(
    base: optax.GradientTransformation, schedule: optax.Schedule, b1: float
) -> optax.GradientTransformation:
    """Return Schedule-Free learning (Defazio et al. 2024, arXiv:2405.15682) with the rule `base`.

    Let g be the gradient at y = (1 - b1) * z + b1 * x, r the learning rate, and R the largest
    learning rate so far. Then
        z <- z + (update of `base` for g, y and r),    x <- x + R ** 2 / sum(R ** 2) * (z - x)
    where `base` has no momentum. The parameters in the train state, which are evaluated and saved,
    are x.

    This wraps optax.contrib.schedule_free, whose parameters are y. It also reads the learning rate
    of the next step; here, as in the authors' code, it is that of the current step.
    """
    inner = optax.contrib.schedule_free(base, lambda count: schedule(count - 1), b1)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        point = gradient_point(params, state)
        updates, state = inner.update(grads, state, point)
        point = optax.apply_updates(point, updates)
        average = optax.contrib.schedule_free_eval_params(state, point)
        return jax.tree.map(jnp.subtract, average, params), state

    return optax.GradientTransformation(inner.init, update)


def _masked(inner: optax.GradientTransformation, mask: Any) -> optax.GradientTransformation:
    """Return `inner` applied to the arrays in `mask`, or to all arrays if it is None."""
    return inner if mask is None else optax.masked(inner, mask)


def clipping(
    optim: ConfigDict, tuning: FineTuning = NO_TUNING
) -> list[optax.GradientTransformation]:
    """Return the gradient clipping: by value, then by global norm, then adaptive.

    Adaptive gradient clipping (Brock et al. 2021, arXiv:2102.06171, equation 3) replaces the
    gradient g of each unit by
        g * min(1, c * max(|w|, 0.001) / |g|)
    with c = config.optim.agc. A unit is the weights w of one output channel, or a whole bias or
    norm parameter. As in the paper and in timm, the head is not clipped.
    """
    parts = []
    if optim.grad_clip_value:
        parts.append(optax.clip(optim.grad_clip_value))
    if optim.grad_clip_norm:
        if tuning.frozen_steps:
            parts.append(zero_frozen(tuning))
        parts.append(optax.clip_by_global_norm(optim.grad_clip_norm))
    if optim.agc:
        clip = optax.adaptive_grad_clip(optim.agc, eps=1e-3)
        parts.append(optax.masked(clip, lambda params: _body_mask(params, tuning)))
    return parts


def _body_mask(params: Any, tuning: FineTuning) -> Any:
    """Return a tree with False for the parameters of the head and True for all others."""
    head = head_mask(params, tuning.model)
    return jax.tree.map(lambda is_head: not is_head, head)


def _decayed_rule(
    optim: ConfigDict, mask: Any, tuning: FineTuning
) -> list[optax.GradientTransformation]:
    """Return the update rule, with weight decay before (L2) or after it (decoupled)."""
    if optim.name == "sgd":
        rule = optax.trace(decay=optim.momentum, nesterov=optim.nesterov)
    elif optim.name in ("adam", "adamw"):
        rule = optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.eps)
    elif optim.name == "schedule_free_sgd":
        rule = optax.identity()
    elif optim.name == "schedule_free_adamw":
        rule = optax.scale_by_rms(optim.b2, optim.eps, eps_in_sqrt=False, bias_correction=True)
    elif optim.name == "rmsprop":
        rule = rmsprop(optim)
    elif optim.name == "lion":
        rule = optax.scale_by_lion(b1=optim.b1, b2=optim.b2)
    elif optim.name == "muon":
        rule = muon(optim, tuning)
    else:
        raise UserError(f"config.optim.name = {optim.name!r} is not an optimizer")
    if not optim.weight_decay:
        return [rule]
    decay = optax.add_decayed_weights(optim.weight_decay, mask=mask)
    # AdamW is decoupled by definition, as in torch; so are Lion and Muon.
    always = ("adamw", "lion", "muon", "schedule_free_adamw")
    decoupled = optim.weight_decay_form == "decoupled" or optim.name in always
    return [rule, decay] if decoupled else [decay, rule]


def rmsprop(optim: ConfigDict) -> optax.GradientTransformation:
    """Return RMSprop (Tieleman & Hinton 2012) without the learning rate.

    With gradient g, weights w, learning rate r, and s the average of g ** 2 with decay b2,
        tensorflow  s = 1 at first, v <- momentum * v + r * g / sqrt(s + eps),    w <- w - v
        torch       s = 0 at first, v <- momentum * v + g / (sqrt(s) + eps),      w <- w - r * v
    for config.optim.rmsprop_form. The first is tf.train.RMSPropOptimizer and timm's RMSpropTF, with
    which EfficientNets were trained; the second is torch.optim.RMSprop. In the first, momentum
    comes after the learning rate, so `make_optimizer` adds it.
    """
    if _is_tensorflow_rmsprop(optim):
        return optax.scale_by_rms(optim.b2, optim.eps, initial_scale=1.0, eps_in_sqrt=True)
    scale = optax.scale_by_rms(optim.b2, optim.eps, initial_scale=0.0, eps_in_sqrt=False)
    return optax.chain(scale, optax.trace(decay=optim.momentum))


def _is_tensorflow_rmsprop(optim: ConfigDict) -> bool:
    return optim.name == "rmsprop" and optim.rmsprop_form == "tensorflow"


def muon(optim: ConfigDict, tuning: FineTuning = NO_TUNING) -> optax.GradientTransformation:
    """Return Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) as in optax.

    Unlike the authors and timm, optax corrects the momentum for its start at 0, as in NAdam.

    The Nesterov momentum of a kernel, reshaped to a matrix (height * width * inputs, outputs), is
    replaced by the nearest semi-orthogonal matrix, times sqrt(max(1, columns / rows)). The head,
    depthwise kernels, biases and norm parameters are updated by Adam with Nesterov momentum, with
    b1, b2 and the same learning rate.
    """
    conv = optax.contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
    linear = optax.contrib.MuonDimensionNumbers(reduction_axis=0, output_axis=1)

    def axes(params: Any) -> Any:
        def of(p: jax.Array, is_head: bool) -> optax.contrib.MuonDimensionNumbers | None:
            if is_head or p.ndim not in (2, 4) or (p.ndim == 4 and p.shape[2] == 1):
                return None
            return linear if p.ndim == 2 else conv

        return jax.tree.map(of, params, head_mask(params, tuning.model))

    return optax.contrib.muon(
        -1.0,  # `make_optimizer` applies the learning rate, and the sign with it
        beta=optim.momentum,
        eps=optim.eps,
        adam_b1=optim.b1,
        adam_b2=optim.b2,
        muon_weight_dimension_numbers=axes,
    )


def lars(
    optim: ConfigDict, schedule: optax.Schedule, mask: Any = None
) -> optax.GradientTransformation:
    """Return LARS (You et al. 2017, arXiv:1708.03888, algorithm 1) as in MLPerf's ResNet-50.

    With gradient g, weights w, trust coefficient c, decay d and learning rate r,
        v <- momentum * v + r * c * |w| / (|g| + d * |w|) * (g + d * w),    w <- w - v
    where the factor c * |w| / (...) is 1 if |w| or |g| is 0. Unlike in `make_optimizer`'s SGD, the
    learning rate is applied before the momentum. optax.lars divides by |g + d * w| instead, unlike
    the paper and MLPerf.

    LARS and LAMB scale the learning rate of each array (a kernel, bias or norm parameter), which
    the papers call a layer. Arrays outside `mask` (biases and norm parameters, see `decay_mask`)
    have no weight decay and no scaling, as in the skip list of MLPerf's reference and in LAMB's
    exclude_from_weight_decay.
    """
    coefficient, decay = optim.trust_coefficient, optim.weight_decay

    def scale(g: jax.Array, w: jax.Array) -> jax.Array:
        w_norm, g_norm = jnp.linalg.norm(w.ravel()), jnp.linalg.norm(g.ravel())
        usable = (w_norm > 0) & (g_norm > 0)
        ratio = coefficient * w_norm / jnp.where(usable, g_norm + decay * w_norm, 1.0)
        return jnp.where(usable, ratio, 1.0) * (g + decay * w)

    return optax.chain(
        # stateless_with_tree_map skips masked arrays, which are empty subtrees.
        _masked(optax.stateless_with_tree_map(scale), mask),
        optax.scale_by_learning_rate(schedule),
        optax.trace(decay=optim.momentum, nesterov=optim.nesterov),
    )


def lamb(
    optim: ConfigDict, schedule: optax.Schedule, mask: Any = None
) -> optax.GradientTransformation:
    """Return LAMB (You et al. 2019, arXiv:1904.00962, algorithm 2, with phi the identity).

    With Adam's bias-corrected update a = m / (sqrt(v) + eps), weights w, decay d and learning
    rate r,
        u = a + d * w,    w <- w - r * |w| / |u| * u
    where |w| / |u| is 1 if either norm is 0. timm's Lamb also clips the gradient to a global norm
    of 1; set config.optim.grad_clip_norm for that.
    """
    return optax.chain(
        optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.eps),
        optax.add_decayed_weights(optim.weight_decay, mask=mask),
        _masked(optax.scale_by_trust_ratio(), mask),
        optax.scale_by_learning_rate(schedule),
    )
