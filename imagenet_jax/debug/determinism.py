"""The determinism check: whether training repeats bit for bit here (config.debug.determinism)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from imagenet_jax.debug.hooks import Hook
from imagenet_jax.errors import UserError
from imagenet_jax.logs.recorder import Recorder
from imagenet_jax.runtime.watchdog import Watchdog
from imagenet_jax.training.evaluate import Batches
from imagenet_jax.training.experiment import Experiment
from imagenet_jax.training.sharding import replicated
from imagenet_jax.training.state import TrainState, copy_state

_ADVICE = (
    "on GPUs start again with XLA_FLAGS=--xla_gpu_deterministic_ops=true in the environment; "
    "elsewhere suspect the model or faulty memory"
)


class DeterminismCheck(Hook):
    """Runs the next config.debug.determinism steps twice before training and compares the bits.

    Batches, metrics and every array of the state are compared after each step. The state that
    training continues from does not change; three states are in memory meanwhile.
    """

    def __init__(self, run: Experiment, recorder: Recorder, watchdog: Watchdog):
        self._run, self._recorder, self._watchdog = run, recorder, watchdog
        self._same = jax.jit(_same_bits, out_shardings=replicated(run.mesh))

    def before_training(
        self, state: TrainState, train_step: Callable, make_batches: Callable[[int], Batches]
    ) -> None:
        """Raises UserError that names the first step and array that differ, and a remedy."""
        first = int(state.step)
        last = min(first + self._run.config.debug.determinism, self._run.total_steps)
        if first >= last:
            return
        one, two = copy_state(state), copy_state(state)
        pairs = zip(make_batches(last), make_batches(last), strict=True)
        for step, (a, b) in enumerate(pairs, first + 1):
            if a.pop("skipped", []) != b.pop("skipped", []):
                raise UserError(f"batch {step} skips different images when it is read again")
            if names := self._find_different(a, b):
                raise UserError(
                    f"batch {step} is not repeatable: {_summarize(names)} when the pipeline runs "
                    "again; suspect the storage, or the library that decodes the images"
                )
            one, metrics_one = train_step(one, a)
            two, metrics_two = train_step(two, b)
            if names := self._find_different((metrics_one, one), (metrics_two, two)):
                names = [name.split(".", 1)[1] for name in names]  # without the index in the pair
                raise UserError(
                    f"step {step} is not repeatable: {_summarize(names)} when it runs again from "
                    f"the same state on the same batch; {_ADVICE}"
                )
            self._watchdog.beat()
        self._recorder.say(f"repeatable: steps {first + 1} to {last} ran twice with the same bits")

    def _find_different(self, a: Any, b: Any) -> list[str]:
        """Return the names of the arrays that differ between two trees."""
        same = jax.tree_util.tree_leaves_with_path(jax.device_get(self._same(a, b)))
        name = jax.tree_util.keystr
        return [name(path, simple=True, separator=".") for path, equal in same if not equal]


def _same_bits(a: Any, b: Any) -> Any:
    """Return a tree of bool[]: whether each pair of arrays has the same bits."""
    return jax.tree.map(lambda x, y: jnp.all(_bits(x) == _bits(y)), a, b)


def _bits(x: jax.Array) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")


def _summarize(names: list[str]) -> str:
    others = f" and {len(names) - 1} other arrays have" if len(names) > 1 else " has"
    return f"{names[0]}{others} different bits"
