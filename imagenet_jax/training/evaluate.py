"""Evaluation of a state: one pass over a split that counts every image once."""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from imagenet_jax.data import pipeline
from imagenet_jax.errors import UserError
from imagenet_jax.runtime.processes import gather_names
from imagenet_jax.training.experiment import Evaluation
from imagenet_jax.training.metrics import METRICS, finish_means
from imagenet_jax.training.sharding import prefetch_to_device
from imagenet_jax.training.state import TrainState
from imagenet_jax.training.step import compile_eval_step

Result = dict[str, Any]
Batches = Iterator[dict[str, Any]]
Watched = Callable[[Batches], Batches]  # wraps the batches of a pass; what it raises ends the pass

_IN_FLIGHT = 2  # batches that are computed while the next one is read


def eval_batches(evaluation: Evaluation) -> Batches:
    """Yield the batches of the evaluation split on the mesh, as `pipeline.eval_batches` does."""
    batches = pipeline.eval_batches(
        evaluation.source,
        evaluation.config.data,
        evaluation.config.eval,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return prefetch_to_device(batches, evaluation.mesh)


class Evaluator:
    """Evaluates states of one shape with a program that is compiled once."""

    def __init__(self, evaluation: Evaluation):
        self._evaluation = evaluation
        self._step = compile_eval_step(
            evaluation.abstract,
            evaluation.mesh,
            evaluation.graph,
            evaluation.config,
            evaluation.outputs,
        )

    def __call__(self, state: TrainState, watched: Watched = iter) -> list[Result]:
        """Return the results of the EMA weights, if the state has any, and of the raw weights.

        Returns:
          {"weights": "ema" or "raw", "count": images, and the value of each of `METRICS`}.
          If the data has only some classes of the model, also "classes" (how many) and
          "of_classes"; the other classes' logits are left out. If images could not be decoded and
          config.data.undecodable is "skip", also "skipped", their names; they are not counted.
        """
        kinds = ["raw"] if state.ema is None else ["ema", "raw"]
        return [{"weights": kind} | self._measure(state.weights(kind), watched) for kind in kinds]

    def _measure(self, weights: dict[str, Any], watched: Watched) -> Result:
        config, source = self._evaluation.config, self._evaluation.source
        per_batch, skipped = [], []
        for batch in watched(eval_batches(self._evaluation)):
            skipped += batch.pop("skipped", [])
            per_batch.append(self._step(weights, batch))
            jax.block_until_ready(per_batch[-_IN_FLIGHT - 1 : -_IN_FLIGHT])
        if config.data.undecodable == "skip":
            skipped = gather_names(skipped)
        # Python's float and int: sums over a split would round in float32.
        sums = dict.fromkeys(per_batch[0], 0.0)
        for batch in jax.device_get(per_batch):
            for name, value in batch.items():
                sums[name] += float(value)
        count = round(sums["count"])
        if count + len(skipped) != len(source):
            raise AssertionError(f"{count} images evaluated of the {len(source)} in {source.name}")
        if not count:
            raise UserError(f"none of the {len(source)} images of {source.name} can be decoded")
        result = {"count": count} | finish_means({name: sums[name] / count for name in METRICS})
        if len(source.class_names) < config.model.num_classes:
            result["classes"] = len(source.class_names)
            result["of_classes"] = config.model.num_classes
        return result | ({"skipped": skipped} if skipped else {})
