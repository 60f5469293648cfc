"""Exponential moving averages (EMA) of the weights (Polyak & Juditsky 1992)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from imagenet_jax.errors import UserError

StepSize = Callable[[jax.Array], jax.Array | float]


def make_step_size(
    ema: ConfigDict, *, batch_size: int, epochs: float, warmup_steps: int
) -> StepSize:
    """Return the step size of the EMA, 1 - decay, as a function of the step (0, 1, ...).

    ema <- ema + step_size * (weights - ema), for parameters and batch-norm statistics alike.

    "constant"     1 - decay: as in flax's ImageNet example and timm's ModelEmaV2.
    "torchvision"  min(1, (1 - decay) * batch_size * every_steps / epochs), which makes `decay`
                   independent of batch size and run length. 1 (the EMA is a copy of the weights)
                   during the warm-up of the learning rate and at the first update after it
                   (references/classification/train.py, utils.ExponentialMovingAverage).
    "timm"         max(1 - decay, (1 + t / gamma) ** -power) at step t, thus 1 at step 0
                   (ModelEmaV3 with use_warmup).

    The EMA is updated only at steps divisible by `every_steps`; the step size is 0 at the others.
    torchvision restarts that count in each epoch; this code does not.

    Args:
      ema: config.ema.
      batch_size, epochs: of the run, for "torchvision".
      warmup_steps: length of the learning-rate warm-up, for "torchvision".
    """
    floor = 1.0 - ema.decay
    if ema.form == "constant":

        def step_size(step: jax.Array) -> jax.Array | float:
            return floor

    elif ema.form == "torchvision":
        scaled = min(1.0, floor * batch_size * ema.every_steps / epochs)

        def step_size(step: jax.Array) -> jax.Array | float:
            return jnp.where(step < warmup_steps + ema.every_steps, 1.0, scaled)

    elif ema.form == "timm":

        def step_size(step: jax.Array) -> jax.Array | float:
            return jnp.maximum((1.0 + step / ema.gamma) ** -ema.power, floor)

    else:
        raise UserError(f"config.ema.form = {ema.form!r}: use constant | torchvision | timm")
    if ema.every_steps == 1:
        return step_size
    return lambda step: jnp.where(step % ema.every_steps == 0, step_size(step), 0.0)
