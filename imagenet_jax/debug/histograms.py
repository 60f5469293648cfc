"""Histograms of weights and gradients of each layer group (config.log.histograms_every_epochs)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagenet_jax.debug.hooks import Hook
from imagenet_jax.logs.recorder import Recorder
from imagenet_jax.logs.writers import Histogram
from imagenet_jax.runtime import xla
from imagenet_jax.training.experiment import Experiment
from imagenet_jax.training.layer_groups import named_groups
from imagenet_jax.training.sharding import replicated
from imagenet_jax.training.state import TrainState
from imagenet_jax.training.step import Batch, Scalars, StepParts, gradient

BINS = 64


class Histograms(Hook):
    """Writes histograms every config.log.histograms_every_epochs.

    For each layer group G, there is a histogram of the gradients of the step before clipping
    ("gradients/G") and of the weights after it ("weights/G"). The compiled step does not change.
    Gradients are computed a second time, which takes about as long as 1.3 steps
    (benchmarks/RESULTS.md).
    """

    def __init__(self, run: Experiment, recorder: Recorder):
        self._steps = run.steps_at(run.config.log.histograms_every_epochs)
        self._recorder = recorder
        self._of_gradients, self._of_weights = compile_histograms(run.parts, run.mesh)
        self._found: dict[str, Histogram] = {}

    def before_update(self, step: int, state: TrainState, batch: Batch) -> None:
        if step in self._steps:
            self._found = self._compute("gradients", self._of_gradients, state, batch)

    def after_update(self, step: int, state: TrainState, metrics: Scalars) -> None:
        if step in self._steps:
            found = self._compute("weights", self._of_weights, state.params)
            self._recorder.histograms(step, self._found | found)

    def _compute(self, kind: str, program: Callable, *args: Any) -> dict[str, Histogram]:
        self._recorder.throughput.drain()
        with self._recorder.evaluating():
            return _to_host(kind, program(*args))


def compile_histograms(
    parts: StepParts, mesh: Mesh
) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    """Return two programs: (state, batch) -> gradient histograms, params -> weight histograms."""
    model = parts.config.model.name
    compiled = functools.partial(
        jax.jit, out_shardings=replicated(mesh), compiler_options=xla.options()
    )
    return (
        compiled(lambda state, batch: group_histograms(gradient(state, batch, parts).grads, model)),
        compiled(lambda params: group_histograms(params, model)),
    )


def group_histograms(tree: Any, model: str) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Return (counts i32[64], edges f32[65]) of the values of each layer group of `model`.

    Edges go from the smallest to the largest value, or from 0.5 below to 0.5 above it if all values
    are equal. Counts equal those of `numpy.histogram`: each bin includes its lower edge, and the
    last one its upper edge too.

    Args:
      tree: a tree like the parameters. It may be sharded and is not gathered.
    """
    return {group: _histogram(leaves) for group, leaves in named_groups(tree, model).items()}


def _histogram(leaves: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    low = jnp.stack([jnp.min(x) for x in leaves]).min()
    high = jnp.stack([jnp.max(x) for x in leaves]).max()
    low, high = jnp.where(low == high, low - 0.5, low), jnp.where(low == high, high + 0.5, high)
    edges = low + (high - low) * jnp.arange(BINS + 1, dtype=low.dtype) / BINS
    edges = edges.at[-1].set(high)  # rounding must not exclude the largest value

    def at_least(edge: jax.Array) -> jax.Array:
        return jnp.stack([jnp.sum(x >= edge, dtype=jnp.int32) for x in leaves]).sum()

    # A pass over the values for each edge needs no memory; a scatter would be sequential.
    reached = jax.lax.map(at_least, edges[:-1])
    return reached - jnp.append(reached[1:], 0), edges


def _to_host(kind: str, groups: Any) -> dict[str, Histogram]:
    """Return histograms by name, except those with NaN or infinite values, which have no range."""
    return {
        f"{kind}/{group}": (counts, edges)
        for group, (counts, edges) in jax.device_get(groups).items()
        if np.isfinite(edges).all()
    }
