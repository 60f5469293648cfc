"""Learning-rate schedules: linear warm-up, then decay."""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from imagenet_jax.config.rules import resolve_lr_scaling
from imagenet_jax.data.sampler import in_steps
from imagenet_jax.errors import UserError


def peak_learning_rate(optim: ConfigDict, batch_size: int) -> float:
    """Return the learning rate after warm-up: `base_lr` scaled to `batch_size`.

    "linear" scaling is that of Goyal et al. 2017 (arXiv:1706.02677, section 2.1); "sqrt" keeps the
    variance of the update constant (Krizhevsky 2014, arXiv:1404.5997).
    """
    return optim.base_lr * _scale(optim, batch_size)


def _scale(optim: ConfigDict, batch_size: int) -> float:
    ratio = batch_size / optim.base_batch_size
    rule = resolve_lr_scaling(optim.name, optim.lr_scaling)
    return {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[rule]


def make_schedule(
    optim: ConfigDict,
    *,
    batch_size: int,
    steps_per_epoch: Fraction | float,
    total_steps: int,
    shift: Fraction | int = 0,
) -> optax.Schedule:
    """Return the learning rate as a function of the step (0, 1, ...): linear warm-up, then decay.

    With w warm-up steps, initial rate s, peak rate p, final rate e and T total steps, the rate at
    step t >= w is
        step        p * decay_factor ** (number of milestones m with t >= m * steps_per_epoch)
        exponential p * decay_factor ** floor(t / (decay_every_epochs * steps_per_epoch))
        cosine      e + (p - e) * (1 + cos(pi * u)) / 2   (arXiv:1608.03983)
        polynomial  e + (p - e) * (1 - u) ** power
        constant    p
    and at step t < w it is s + (p - s) * t / w. Here u = max(0, t - d) / (T - d), where d is
    config.optim.decay_from, by default w. With config.optim.schedule_by = "epoch", t, w, d and T
    are in epochs, and the rate is constant within an epoch.

    `shift` is added to each step. It is nonzero, and may be fractional, if an earlier part of the
    run had another batch size. A milestone or a new epoch takes effect at the first step that
    starts after it.
    """
    if optim.schedule_by == "epoch":
        epochs = (in_steps(epoch, steps_per_epoch) for epoch in itertools.count())
        begun = itertools.takewhile(lambda first: math.ceil(first) < total_steps, epochs)
        starts = [math.ceil(first - shift) for first in begun]
        milestones = [float(m) for m in _milestones(optim, 1, len(starts))]
        times = _Times(len(starts), optim.warmup_epochs, optim.decay_from, milestones)
        rates = jax.vmap(_curve(optim, batch_size, times))(jnp.arange(len(starts)))
        first_steps = jnp.array(starts, int)
        return lambda t: rates[jnp.searchsorted(first_steps, t, side="right") - 1]
    times = _Times(
        total_steps,
        round(in_steps(optim.warmup_epochs, steps_per_epoch)),
        round(in_steps(optim.decay_from, steps_per_epoch)) if optim.decay_from >= 0 else -1,
        # Integers, because float32 rounding could move a milestone.
        [math.ceil(m - shift) for m in _milestones(optim, steps_per_epoch, total_steps)],
        float(shift),
    )
    return _curve(optim, batch_size, times)


def _milestones(optim: ConfigDict, steps_per_epoch: Fraction | float, total: int) -> list[Fraction]:
    """Return the steps before `total` at which "step" and "exponential" reduce the rate."""
    if optim.schedule != "exponential":
        begins = (in_steps(epoch, steps_per_epoch) for epoch in optim.milestones)
        return [begin for begin in begins if begin < total]
    every = optim.decay_every_epochs
    begins = (in_steps(i * every, steps_per_epoch) for i in itertools.count(1))
    return list(itertools.takewhile(lambda begin: begin < total, begins))


class _Times(NamedTuple):
    """The times at which a schedule changes, in steps or in epochs.

    Attributes:
      total: length of the run.
      warmup: end of the warm-up.
      decay_from: start of the decay; -1: the end of the warm-up.
      milestones: those before `total`, with `shift` already subtracted.
      shift: added to each step.
    """

    total: int
    warmup: float
    decay_from: float
    milestones: Sequence[float]
    shift: float = 0.0


def _curve(optim: ConfigDict, batch_size: int, times: _Times) -> optax.Schedule:
    """Return the formula of `make_schedule` as a function of time in the unit of `times`."""
    scale = _scale(optim, batch_size)
    peak, start, end = (r * scale for r in (optim.base_lr, optim.warmup_start_lr, optim.end_lr))
    warmup, shift = times.warmup, times.shift
    # Time from the start of the decay to the end of the warm-up.
    early = 0 if times.decay_from < 0 else warmup - times.decay_from
    decay = max(1, times.total - warmup + early)
    if optim.schedule in ("step", "exponential"):
        at = jnp.array(times.milestones)

        def decayed(step: Any) -> jax.Array:
            return peak * jnp.prod(jnp.where(step >= at, optim.decay_factor, 1.0))

    else:
        if optim.schedule == "cosine":
            after = optax.cosine_decay_schedule(peak, decay, alpha=end / peak if peak else 0.0)
        elif optim.schedule == "polynomial":
            after = optax.polynomial_schedule(peak, end, optim.power, decay)
        elif optim.schedule == "constant":
            after = optax.constant_schedule(peak)
        else:
            raise UserError(f"config.optim.schedule = {optim.schedule!r} is not a schedule")

        def decayed(step: Any) -> jax.Array:
            t = _add(_add(step, shift), -warmup)
            return after(jnp.maximum(t + early, 0) if early else t)

    if not warmup:
        return decayed
    rising = optax.linear_schedule(start, peak, warmup)

    def joined(step: Any) -> jax.Array:
        t = _add(step, shift)
        return jnp.where(t < warmup, rising(t), decayed(step))

    return joined


def _add(step: Any, more: float) -> Any:
    """Return `step` + `more`, without converting an integer step if `more` is 0."""
    return step + more if more else step
