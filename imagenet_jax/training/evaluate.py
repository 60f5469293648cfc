"""The evaluation step, and evaluation of a split, in which every image counts once."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from imagenet_jax.data import pipeline
from imagenet_jax.data.augment import normalize
from imagenet_jax.errors import UserError
from imagenet_jax.models.folding import fold_batch_norm
from imagenet_jax.runtime import xla
from imagenet_jax.runtime.processes import gather_names
from imagenet_jax.training.experiment import Evaluation
from imagenet_jax.training.metrics import METRICS, finish_means
from imagenet_jax.training.sharding import (
    batch_sharding,
    get_shardings,
    prefetch_to_device,
    replicated,
)  # fmt: skip
from imagenet_jax.training.state import TrainState
from imagenet_jax.training.step import Batch, Scalars

Result = dict[str, Any]
Batches = Iterator[dict[str, Any]]
Watched = Callable[[Batches], Batches]  # wraps the batches of an evaluation; may raise to end it

_IN_FLIGHT = 2  # batches being computed while the next one is read


def eval_batches(evaluation: Evaluation) -> Batches:
    """Yield the batches of `pipeline.eval_batches` for the evaluation split, on the mesh."""
    batches = pipeline.eval_batches(
        evaluation.source,
        evaluation.config,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return prefetch_to_device(batches, evaluation.mesh)


def eval_step(
    weights: dict[str, Any],
    batch: Batch,
    *,
    graph: nnx.GraphDef,
    config: ConfigDict,
    outputs: np.ndarray | None = None,
) -> Scalars:
    """Return the sums of the metrics over a batch, without its padding.

    Args:
      weights: {"params", "batch_stats"}.
      batch: "image" u8[B, H, W, 3], "label" i32[B], "mask" f32[B] (0 for padding).
      outputs: i32[K], index of the logit for each of the K labels; other logits are ignored. None:
        label i is logit i.

    Returns:
      f32[] sums over the images: "count", and `per_image` of each metric. The loss is the softmax
      cross-entropy, whatever config.loss is.
    """
    model = fold_batch_norm(nnx.merge(graph, weights["params"], weights["batch_stats"]))
    pixels = normalize(batch["image"], config.data.mean, config.data.std, config.model.dtype)
    logits = _logits(model, pixels, config.eval.flip, outputs)
    mask = batch["mask"]
    per_image = {name: m.per_image(logits, batch["label"]) for name, m in METRICS.items()}
    per_image["count"] = jnp.ones_like(mask)
    # jnp.where, not a product: the loss of a padded row may be infinite, and 0 * inf is NaN.
    return {k: jnp.sum(jnp.where(mask > 0, v, 0), dtype=jnp.float32) for k, v in per_image.items()}


def predict(
    weights: dict[str, Any],
    images: jax.Array | np.ndarray,
    *,
    graph: nnx.GraphDef,
    config: ConfigDict,
    outputs: np.ndarray | None = None,
) -> jax.Array:
    """Return the class probabilities f32[B, C], or f32[B, K] with `outputs`, of u8[B, H, W, 3]."""
    model = fold_batch_norm(nnx.merge(graph, weights["params"], weights["batch_stats"]))
    pixels = normalize(jnp.asarray(images), config.data.mean, config.data.std, config.model.dtype)
    return jax.nn.softmax(_logits(model, pixels, config.eval.flip, outputs))


def _logits(model: Any, pixels: jax.Array, flip: bool, outputs: np.ndarray | None) -> jax.Array:
    """Return f32[B, C], or f32[B, K] with `outputs`. With `flip`, average over the mirror image."""
    logits = model(pixels, train=False)
    if flip:
        logits = (logits + model(pixels[:, :, ::-1], train=False)) / 2
    return logits if outputs is None else logits[:, outputs]


def compile_eval_step(evaluation: Evaluation) -> jax.stages.Wrapped:
    """Return `eval_step` as one sharded program of (weights, batch), with replicated sums."""
    step = functools.partial(
        eval_step, graph=evaluation.graph, config=evaluation.config, outputs=evaluation.outputs
    )
    shardings = get_shardings(evaluation.abstract.weights("raw"))
    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(evaluation.mesh)),
        out_shardings=replicated(evaluation.mesh),
        compiler_options=xla.options(
            platform=evaluation.mesh.devices.flat[0].platform, devices=evaluation.mesh.size
        ),
    )


class Evaluator:
    """Evaluates states with a program that is compiled once."""

    def __init__(self, evaluation: Evaluation):
        self._evaluation, self._step = evaluation, compile_eval_step(evaluation)

    def __call__(self, state: TrainState, watched: Watched = iter) -> list[Result]:
        """Evaluate the EMA weights, if the state has them, and the raw weights.

        Returns a dict for each, with these keys:
          weights: "ema" or "raw".
          count: number of images.
          The names of `METRICS`.
          classes, of_classes: number of classes in the data and in the model, if the data has only
            some of them. The logits of the other classes are ignored.
          skipped: names of images that could not be decoded, if config.data.undecodable is "skip".
            They are not counted.
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
        # Add in float64, because float32 would round sums over a split.
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
