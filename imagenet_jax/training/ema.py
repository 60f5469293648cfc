"""Running averages of weights (Polyak & Juditsky 1992), in the forms that recipes name.

Parameters and batch-norm statistics are averaged alike. Each form says what share of the new
weights enters the average at a step; 1 minus it is the decay.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from imagenet_jax.errors import UserError

Share = Callable[[jax.Array], jax.Array | float]


def make_step_size(ema: ConfigDict, *, batch_size: int, epochs: float, warmup_steps: int) -> Share:
    """The share of the weights after step 0, 1, ... in the average after it.

    "constant"     1 - decay: as in flax's ImageNet example and timm's ModelEmaV2.
    "torchvision"  min(1, (1 - decay) * batch_size * every_steps / epochs), so that one `decay` is
                   the same share of a run whatever its batch and length. The average is a copy of
                   the weights during the warm-up of the learning rate and at the update that
                   follows it (references/classification/train.py, utils.ExponentialMovingAverage).
    "timm"         max(1 - decay, (1 + t / gamma) ** -power) at step t, and 1 at step 0: an average
                   over a growing span (ModelEmaV3 with use_warmup).

    The average is updated at the steps that `every_steps` divides, and stays as it is at others.
    torchvision counts them anew in each epoch; here they run through.

    Args:
      ema: config.ema.
      batch_size, epochs: those of the run, for "torchvision".
      warmup_steps: steps of the warm-up of the learning rate, for "torchvision".
    """
    floor = 1.0 - ema.decay
    if ema.form == "constant":

        def share(step: jax.Array) -> jax.Array | float:
            return floor

    elif ema.form == "torchvision":
        scaled = min(1.0, floor * batch_size * ema.every_steps / epochs)

        def share(step: jax.Array) -> jax.Array | float:
            return jnp.where(step < warmup_steps + ema.every_steps, 1.0, scaled)

    elif ema.form != "timm":
        raise UserError(f"config.ema.form = {ema.form!r}: use constant | torchvision | timm")
    else:

        def share(step: jax.Array) -> jax.Array | float:
            warm = (1.0 + step / ema.gamma) ** -ema.power
            return jnp.maximum(warm, floor)

    if ema.every_steps == 1:
        return share
    return lambda step: jnp.where(step % ema.every_steps == 0, share(step), 0.0)


def share_at(ema: ConfigDict, averaging: Share | None, step: jax.Array) -> jax.Array | float:
    """`averaging` of a step, or the constant share where config.ema needs nothing else."""
    if averaging is not None:
        return averaging(step)
    if ema.form != "constant" or ema.every_steps != 1:
        raise ValueError(f"config.ema.form = {ema.form!r}: pass averaging=ema.make_step_size(...)")
    return 1.0 - ema.decay
