"""The NaN check: finds the operation that made the first NaN of a step (config.debug.nans)."""

import functools
import traceback
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jax.experimental import checkify

from imagenet_jax.debug.hooks import Hook
from imagenet_jax.errors import UserError
from imagenet_jax.runtime import xla
from imagenet_jax.training.experiment import Experiment
from imagenet_jax.training.sharding import batch_sharding, replicated
from imagenet_jax.training.state import TrainState, copy_state
from imagenet_jax.training.step import Batch, Scalars, train_step

# Frames in these packages do not tell which line of the model asked for an operation.
_LIBRARIES = tuple(path for package in (jax, flax, optax) for path in package.__path__)


class NanCheck(Hook):
    """Raises UserError after a step whose results contain a NaN.

    The compiled step and its results do not change, but each step is waited for, with a copy of the
    state in memory. A step with a NaN runs again from that copy, with every operation checked by
    `jax.experimental.checkify`; the message names the first one that fails.
    """

    def __init__(self, run: Experiment):
        self._run = run
        self._has_nan = jax.jit(_has_nan, out_shardings=replicated(run.mesh))

    def before_update(self, step: int, state: TrainState, batch: Batch) -> None:
        self._before, self._batch = copy_state(state), batch

    def after_update(self, step: int, state: TrainState, metrics: Scalars) -> None:
        if self._has_nan((state, metrics)):
            origin = _find_origin(self._run, self._before, self._batch)
            raise UserError(f"NaN at step {step}: {origin}; the last checkpoint is kept")


def _has_nan(tree: Any) -> jax.Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.any(jnp.stack([jnp.isnan(x).any() for x in floats]))


def _find_origin(run: Experiment, state: TrainState, batch: Batch) -> str:
    """Return the operation that made the first NaN of the step from `state`, and its line."""
    step = functools.partial(train_step, parts=run.parts)
    checked = checkify.checkify(step, errors=checkify.nan_checks)
    locate = jax.jit(
        lambda state, batch: checked(state, batch)[0],
        in_shardings=(jax.tree.map(lambda x: x.sharding, run.abstract), batch_sharding(run.mesh)),
        out_shardings=replicated(run.mesh),
        compiler_options=xla.options(optimize=False),
    )
    error = locate(state, batch).get_exception()
    if error is None:
        return (
            "not when the step ran again from the same state and batch, with every operation "
            "checked; see --config.debug.determinism"
        )
    return f"first in the operation {error.prim}, or its gradient, at {_find_line(error)}"


def _find_line(error: Any) -> str:
    """Return "file:line (function)" of the innermost frame outside the libraries."""
    frames = traceback.extract_tb(error.traceback_info.as_python_traceback())
    ours = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    frame = (ours or frames)[-1]
    return f"{frame.filename}:{frame.lineno} ({frame.name})"
