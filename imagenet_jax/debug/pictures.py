"""Pictures of a run: the inputs of its first step, and its worst mistakes at the end."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imagenet_jax.data import augment
from imagenet_jax.debug.hooks import Hook
from imagenet_jax.debug.image_grid import captioned, grid
from imagenet_jax.logs.recorder import Recorder
from imagenet_jax.runtime import xla
from imagenet_jax.training.evaluate import Watched, eval_batches, predict
from imagenet_jax.training.experiment import Evaluation, Experiment
from imagenet_jax.training.sharding import batch_sharding, replicated
from imagenet_jax.training.state import TrainState
from imagenet_jax.training.step import Batch, step_keys


class Pictures(Hook):
    """Writes config.log.images images: inputs of the first step, and mistakes of the last one."""

    def __init__(self, run: Experiment, recorder: Recorder):
        self._run, self._recorder = run, recorder
        self._count = min(run.config.log.images, run.config.batch_size)

    def before_update(self, step: int, state: TrainState, batch: Batch) -> None:
        if step == 1:
            with self._recorder.evaluating():
                pixels = augmented(batch, 1, self._run.config, self._run.mesh, self._count)
                self._recorder.images(1, "inputs", grid(pixels))

    def after_evaluation(self, step: int, state: TrainState, watch: Watched) -> None:
        run, names = self._run, self._run.source.class_names
        if step != run.total_steps:
            return
        with self._recorder.evaluating():
            worst = find_mistakes(run.evaluation, state, run.config.log.images, watch)
        if len(worst.labels):
            captions = [
                (f"true: {names[label]}", f"predicted {p:.0%}: {names[predicted]}")
                for label, predicted, p in zip(
                    worst.labels, worst.predicted, worst.confidence, strict=True
                )
            ]
            self._recorder.images(step, "mistakes", grid(captioned(worst.pixels, captions), gap=6))


def augmented(
    batch: dict[str, jax.Array], step: int, config: ConfigDict, mesh: Mesh, count: int
) -> np.ndarray:
    """Return u8[N, H, W, 3]: the first `count` images of the batch of `step` after augmentation.

    This is the step's own augmentation with the step's key, applied to the whole batch because an
    image may be mixed with any other; then the normalization is undone and values are clipped to
    bytes. Every process must call it.
    """

    def shown(images: jax.Array, labels: jax.Array, mask: jax.Array | None) -> jax.Array:
        pixels, _ = augment.apply(
            images,
            labels,
            step_keys(config.seed, jnp.int32(step - 1))[0],
            config.augment,
            num_classes=config.model.num_classes,
            mean=config.data.mean,
            std=config.data.std,
            valid=mask,
        )
        rgb = pixels[:count] * jnp.asarray(config.data.std) + jnp.asarray(config.data.mean)
        return jnp.round(jnp.clip(rgb, 0, 1) * 255).astype(jnp.uint8)

    program = jax.jit(
        shown,
        out_shardings=replicated(mesh),
        compiler_options=xla.options(optimize=False),
    )
    return np.asarray(program(batch["image"], batch["label"], batch.get("mask")))


class Mistakes(NamedTuple):
    """The wrong predictions of the highest confidence, in descending order.

    Attributes:
      pixels: u8[N, S, S, 3], as the model saw them.
      labels: i32[N].
      predicted: i32[N].
      confidence: f32[N], the probability of the predicted class.
    """

    pixels: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray


def find_mistakes(
    evaluation: Evaluation, state: TrainState, count: int, watch: Watched = iter
) -> Mistakes:
    """Return the worst `count` mistakes of the evaluation split, or fewer if there are fewer.

    Uses the EMA weights if the run keeps them, otherwise the raw weights. Takes as long as an
    evaluation. `watch` wraps the batches; an exception that it raises ends the search. Every
    process must call it.
    """
    config, mesh = evaluation.config, evaluation.mesh
    weights = state.weights("raw" if state.ema is None else "ema")
    side = config.eval.image_size

    def update(weights: dict[str, Any], worst: tuple, batch: dict[str, jax.Array]) -> tuple:
        probabilities = predict(weights, batch["image"], graph=evaluation.graph, config=config)
        predicted = jnp.argmax(probabilities, axis=-1).astype(jnp.int32)
        wrong = (predicted != batch["label"]) & (batch["mask"] > 0)
        confidence = jnp.where(wrong, probabilities.max(axis=-1), -1.0).astype(jnp.float32)
        mine = (confidence, batch["image"], batch["label"], predicted)
        both = [jnp.concatenate(pair) for pair in zip(worst, mine, strict=True)]
        _, chosen = jax.lax.top_k(both[0], count)
        return tuple(x[chosen] for x in both)

    program = jax.jit(
        update,
        in_shardings=(
            jax.tree.map(lambda x: x.sharding, weights),
            replicated(mesh),
            batch_sharding(mesh),
        ),
        out_shardings=replicated(mesh),
        compiler_options=xla.options(),
    )
    worst: tuple = (
        np.full(count, -1.0, np.float32),
        np.zeros((count, side, side, 3), np.uint8),
        np.zeros(count, np.int32),
        np.zeros(count, np.int32),
    )
    for batch in watch(eval_batches(evaluation)):
        batch.pop("skipped", None)
        worst = program(weights, worst, batch)
    confidence, pixels, labels, predicted = (np.asarray(x) for x in worst)
    found = confidence >= 0
    return Mistakes(pixels[found], labels[found], predicted[found], confidence[found])
