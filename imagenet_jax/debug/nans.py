"""Which operation of a training step made the first NaN (config.debug.nans)."""

import functools
import traceback
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jax.experimental import checkify

from imagenet_jax.errors import UserError
from imagenet_jax.runtime import xla
from imagenet_jax.training.experiment import Experiment
from imagenet_jax.training.sharding import batch_sharding, replicated
from imagenet_jax.training.state import TrainState, copy_state
from imagenet_jax.training.step import Batch, Scalars, train_step

Step = Callable[[TrainState, Batch], tuple[TrainState, Scalars]]

# Where an operation is asked for, rather than made: frames of these packages say nothing.
_LIBRARIES = tuple(path for package in (jax, flax, optax) for path in package.__path__)


def stop_at_nans(step: Step, run: Experiment) -> Step:
    """`step`, or with config.debug.nans one that raises UserError where its result has a NaN.

    The compiled step is the same, so are its results; but each is waited for, and a copy of the
    state is held until then. A step with a NaN runs again from that copy with a check of every
    operation, as `jax.experimental.checkify` puts them in; the message names the first that fails.
    """
    if not run.config.debug.nans:
        return step
    has_nan = jax.jit(_has_nan, out_shardings=replicated(run.mesh))

    def checked(state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
        before = copy_state(state)
        result = step(state, batch)
        if has_nan(result):
            raise UserError(
                f"NaN at step {int(before.step) + 1}: {_origin(run, before, batch)}; the last "
                "checkpoint is kept"
            )
        return result

    return checked


def _has_nan(tree: Any) -> jax.Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.any(jnp.stack([jnp.isnan(x).any() for x in floats]))


def _origin(run: Experiment, state: TrainState, batch: Batch) -> str:
    """What made the first NaN of the step from `state`, and where the code asks for it."""
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
    return f"first in the operation {error.prim}, or its gradient, at {_place(error)}"


def _place(error: Any) -> str:
    """file:line (function) of the innermost frame outside the libraries."""
    frames = traceback.extract_tb(error.traceback_info.as_python_traceback())
    ours = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    frame = (ours or frames)[-1]
    return f"{frame.filename}:{frame.lineno} ({frame.name})"
