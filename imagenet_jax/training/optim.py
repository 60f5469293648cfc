"""Optimizers, learning-rate schedules and the weight-decay mask, from optax."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from imagenet_jax.training import large_batch
from imagenet_jax.training.fine_tuning import FineTuning, head_first, scale_layers, zero_frozen


def peak_learning_rate(optim: ConfigDict, batch_size: int) -> float:
    """The configured rate scaled from the reference batch size to this one.

    "linear" is Goyal et al. 2017 (arXiv:1706.02677, section 2.1); "sqrt" keeps the variance of
    the update (Krizhevsky 2014, arXiv:1404.5997).
    """
    return optim.peak_lr * _scale(optim, batch_size)


def _scale(optim: ConfigDict, batch_size: int) -> float:
    ratio = batch_size / optim.reference_batch_size
    return {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[optim.lr_scaling]


def learning_rate(
    optim: ConfigDict, *, batch_size: int, steps_per_epoch: float, total_steps: int
) -> optax.Schedule:
    """The learning rate of step 0, 1, ...: a linear warm-up, then the named schedule.

    With w warm-up steps, rate s at the start, peak p, end e and T steps in all, step t >= w has
        step        p * factor ** (number of milestones m with t >= m * steps_per_epoch)
        cosine      e + (p - e) * (1 + cos(pi * (t - w) / (T - w))) / 2   (arXiv:1608.03983)
        polynomial  e + (p - e) * (1 - (t - w) / (T - w)) ** power
        constant    p
    and step t < w has s + (p - s) * t / w.
    """
    scale = _scale(optim, batch_size)
    peak, start, end = (r * scale for r in (optim.peak_lr, optim.warmup_start_lr, optim.end_lr))
    warmup = round(optim.warmup_epochs * steps_per_epoch)
    decay_steps = max(1, total_steps - warmup)
    if optim.schedule == "step":
        # Whole steps, so that rounding in float32 cannot move a milestone.
        at = jnp.array([math.ceil(m * steps_per_epoch) - warmup for m in optim.milestones], int)

        def after(t: jax.typing.ArrayLike) -> jax.Array:
            return peak * jnp.prod(jnp.where(t >= at, optim.factor, 1.0))

    elif optim.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, decay_steps, alpha=end / peak if peak else 0.0)
    elif optim.schedule == "polynomial":
        after = optax.polynomial_schedule(peak, end, optim.power, decay_steps)
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(start, peak, warmup), after], [warmup])


def decay_mask(params: Any) -> Any:
    """True for the leaves that decay when biases and norm parameters do not: the kernels.

    Biases and norm scales are the one-dimensional parameters of these models.
    """
    return jax.tree.map(lambda p: p.ndim > 1, params)


def add_l1_gradient(strength: float) -> optax.GradientTransformation:
    """Adds the gradient of strength * sum(|w|), whose value at w = 0 is taken as 0."""

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(lambda g, w: g + strength * jnp.sign(w), grads, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def optimizer(
    optim: ConfigDict, schedule: optax.Schedule, tuning: FineTuning | None = None
) -> optax.GradientTransformation:
    """The update rule: clip, L1, L2 decay, preconditioner, decoupled decay, learning rate, in turn.

    With "l2" decay this is torch.optim.SGD / Adam (decay enters the momentum); with "decoupled"
    it is SGDW / AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), scaled by the learning rate.
    `tuning` freezes layers at first or scales the rates of layers; None does neither.
    """
    mask = None if optim.decay_bias_and_norm else decay_mask
    frozen = tuning.frozen_steps if tuning else 0
    parts = []
    if tuning and frozen and optim.clip_norm:
        parts.append(zero_frozen(tuning.model, frozen))
    if optim.clip_norm:
        parts.append(optax.clip_by_global_norm(optim.clip_norm))
    if optim.name == "lars":
        parts.append(optax.chain(*_l1(optim, mask), large_batch.lars(optim, schedule, mask)))
    elif optim.name == "lamb":
        parts.append(optax.chain(*_l1(optim, mask), large_batch.lamb(optim, schedule, mask)))
    else:
        rule = optax.chain(*_l1(optim, mask), *_decayed_rule(optim, mask))
        parts.append(head_first(rule, tuning.model, frozen) if tuning and frozen else rule)
        # Outside the rule, whose steps a frozen layer does not count.
        parts.append(optax.scale_by_learning_rate(schedule))
    if tuning and tuning.layer_decay != 1.0:
        parts.append(scale_layers(tuning.model, tuning.layer_decay))
    return optax.chain(*parts)


def _l1(optim: ConfigDict, mask: Any) -> list[optax.GradientTransformation]:
    if not optim.l1:
        return []
    l1 = add_l1_gradient(optim.l1)
    return [l1 if mask is None else optax.masked(l1, mask)]


def _decayed_rule(optim: ConfigDict, mask: Any) -> list[optax.GradientTransformation]:
    """SGD or Adam with weight decay before or after it."""
    if optim.name == "sgd":
        rule = optax.trace(decay=optim.momentum, nesterov=optim.nesterov)
    else:
        rule = optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.eps)
    if not optim.weight_decay:
        return [rule]
    decay = optax.add_decayed_weights(optim.weight_decay, mask=mask)
    # torch's AdamW is decoupled by definition; the name alone decides there.
    decoupled = optim.weight_decay_form == "decoupled" or optim.name == "adamw"
    return [rule, decay] if decoupled else [decay, rule]
