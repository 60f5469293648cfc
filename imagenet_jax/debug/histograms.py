"""Histograms of weights and gradients by layer group, by programs of their own."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagenet_jax.logs.recorder import Recorder
from imagenet_jax.logs.writers import Histogram
from imagenet_jax.runtime import xla
from imagenet_jax.training.experiment import Experiment
from imagenet_jax.training.layer_groups import named_groups
from imagenet_jax.training.sharding import batch_sharding, replicated
from imagenet_jax.training.state import TrainState
from imagenet_jax.training.step import Batch, StepParts, gradient

BINS = 64


class Histograms:
    """Gives the recorder histograms every config.log.histograms_every_epochs; 0: never.

    Those of step N are of the gradients that N applies ("gradients/G", before clipping) and of the
    weights that it leaves ("weights/G"), for each layer group G. The compiled step is the same; the
    gradients are computed once more, and the devices are waited for: a histogram costs the time of
    1.3 steps (benchmarks/RESULTS.md).
    """

    def __init__(self, run: Experiment, recorder: Recorder, idle: Callable[[], None]):
        """`idle` waits for the steps under way and stops the clock of the train step."""
        every = run.config.log.histograms_every_epochs
        self._steps = run.steps_at(every) if every else set()
        self._recorder, self._idle = recorder, idle
        self._of_gradients, self._of_weights = compile_histograms(run.parts, run.abstract, run.mesh)
        self._found: dict[str, Histogram] = {}

    def before(self, step: int, state: TrainState, batch: Batch) -> None:
        """Compute those of the gradients of `step`, which is not dispatched yet."""
        if step in self._steps:
            self._idle()
            with self._recorder.evaluating():
                self._found = _on_host("gradients", self._of_gradients(state, batch))

    def after(self, step: int, state: TrainState) -> None:
        """Add those of the weights that `step` leaves; it is under way."""
        if step in self._steps:
            self._idle()
            with self._recorder.evaluating():
                found = self._found | _on_host("weights", self._of_weights(state.params))
            self._recorder.histograms(step, found)


def compile_histograms(
    parts: StepParts, abstract: TrainState, mesh: Mesh
) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    """(state, batch) -> `group_histograms` of the gradient, and params -> those of them."""
    model = parts.config.model.name
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    compiled = functools.partial(
        jax.jit, out_shardings=replicated(mesh), compiler_options=xla.options()
    )
    of_gradients = compiled(
        lambda state, batch: group_histograms(gradient(state, batch, parts).grads, model),
        in_shardings=(shardings, batch_sharding(mesh)),
    )
    of_weights = compiled(
        lambda params: group_histograms(params, model),
        in_shardings=(shardings.params,),
    )
    return of_gradients, of_weights


def group_histograms(tree: Any, model: str) -> dict[str, tuple[jax.Array, jax.Array]]:
    """(counts i32[64], edges f32[65]) of the values of each layer group of `model`.

    As NumPy's `histogram` of these edges, between the least and the greatest value (half a unit
    around it, where all are one): a bin has its lower edge, the last its upper one too.

    Args:
      tree: like the parameters; it may be sharded, nothing is gathered.
    """
    return {group: _histogram(leaves) for group, leaves in named_groups(tree, model).items()}


def _histogram(leaves: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    low = functools.reduce(jnp.minimum, [jnp.min(x) for x in leaves])
    high = functools.reduce(jnp.maximum, [jnp.max(x) for x in leaves])
    low, high = jnp.where(low == high, low - 0.5, low), jnp.where(low == high, high + 0.5, high)
    edges = low + (high - low) * jnp.arange(BINS + 1, dtype=low.dtype) / BINS
    edges = edges.at[-1].set(high)  # whatever the rounding: the greatest value is inside

    def at_least(edge: jax.Array) -> jax.Array:
        return jnp.stack([jnp.sum(x >= edge, dtype=jnp.int32) for x in leaves]).sum()

    # An edge at a time: one pass over the values each, and no memory; scatters would be sequential.
    reached = jax.lax.map(at_least, edges[:-1])
    return reached - jnp.append(reached[1:], 0), edges


def _on_host(kind: str, groups: Any) -> dict[str, Histogram]:
    """By name; without those of values that are not finite, which have no range."""
    return {
        f"{kind}/{group}": (counts, edges)
        for group, (counts, edges) in jax.device_get(groups).items()
        if np.isfinite(edges).all()
    }
