"""Whether training repeats itself bit for bit on this machine (config.debug.determinism)."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from imagenet_jax.debug.nans import Step
from imagenet_jax.errors import UserError
from imagenet_jax.training.experiment import Experiment
from imagenet_jax.training.sharding import replicated
from imagenet_jax.training.state import TrainState, copy_state

_ADVICE = (
    "on GPUs start again with XLA_FLAGS=--xla_gpu_deterministic_ops=true in the environment, "
    "elsewhere suspect what the model or the memory does"
)


def require_repeatable(
    run: Experiment,
    step: Step,
    state: TrainState,
    batches: Callable[[int], Iterator[dict[str, Any]]],
    say: Callable[[str], None],
    beat: Callable[[], None],
) -> None:
    """Run the next config.debug.determinism steps twice from `state`, and compare bits.

    Batches, metrics and every array of the state are compared after each step; `state` stays as it
    is. Three states are held meanwhile.

    Args:
      step: compiled; it may donate what it gets.
      batches: batches(end) are those from `state` to step `end`, by a pipeline of their own.
      say: gets a line once all are alike.
      beat: called after every step.

    Raises UserError that names the first step and array that differ, and the way out.
    """
    first = int(state.step)
    last = min(first + run.config.debug.determinism, run.total_steps)
    if first >= last:
        return
    same = jax.jit(_same_bits, out_shardings=replicated(run.mesh))

    def differing(a: Any, b: Any) -> list[str]:
        alike = jax.tree_util.tree_leaves_with_path(jax.device_get(same(a, b)))
        name = jax.tree_util.keystr
        return [name(path, simple=True, separator=".") for path, equal in alike if not equal]

    one, two = copy_state(state), copy_state(state)
    for number, a, b in zip(range(first + 1, last + 1), batches(last), batches(last), strict=True):
        if a.pop("skipped", []) != b.pop("skipped", []):
            raise UserError(f"batch {number} skips other images when it is read again")
        if names := differing(a, b):
            raise UserError(
                f"batch {number} is not repeatable: {_summary(names)} when the pipeline runs "
                "again; suspect the storage, or what decodes the images"
            )
        one, metrics_one = step(one, a)
        two, metrics_two = step(two, b)
        if names := differing((metrics_one, one), (metrics_two, two)):
            names = [name.split(".", 1)[1] for name in names]  # not the place in the pair
            raise UserError(
                f"step {number} is not repeatable: {_summary(names)} when it runs again from the "
                f"same state on the same batch; {_ADVICE}"
            )
        beat()
    say(f"repeatable: steps {first + 1} to {last} ran twice, bit for bit alike")


def _same_bits(a: Any, b: Any) -> Any:
    """bool[] for each pair of arrays."""
    return jax.tree.map(lambda x, y: jnp.all(_bits(x) == _bits(y)), a, b)


def _bits(x: jax.Array) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")


def _summary(names: list[str]) -> str:
    others = f" and {len(names) - 1} other arrays have" if len(names) > 1 else " has"
    return f"{names[0]}{others} other bits"
