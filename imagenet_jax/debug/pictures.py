"""Pictures of a run: what its first step trains on, and what it gets wrong at its end."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imagenet_jax.data import augment, pipeline
from imagenet_jax.debug.image_grid import captioned, grid
from imagenet_jax.logs.recorder import Recorder
from imagenet_jax.runtime import xla
from imagenet_jax.training.evaluate import Watched
from imagenet_jax.training.experiment import Evaluation, Experiment
from imagenet_jax.training.sharding import batch_sharding, prefetch_to_device, replicated
from imagenet_jax.training.state import TrainState
from imagenet_jax.training.step import predict, step_keys


def augmented(
    batch: dict[str, jax.Array], step: int, config: ConfigDict, mesh: Mesh, count: int
) -> np.ndarray:
    """The first `count` images of the batch of `step` as the step sees them: u8[N, H, W, 3].

    The same function with the same key, on the whole batch, for an image may be mixed with any
    other; without the normalisation, cut to the range of bytes. Every process must call it.
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
    """The images that were taken for another class with the most confidence, the worst first.

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


def mistakes(
    evaluation: Evaluation,
    state: TrainState,
    count: int,
    watched: Watched = iter,
) -> Mistakes:
    """The worst `count` of the evaluation split, or as many as there are, by the average weights.

    If the run keeps no EMA weights, use the raw weights. It takes as long as an evaluation; every
    process must call it. `watched` wraps the batches; what it raises ends the search.
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
    batches = pipeline.eval_batches(
        evaluation.source,
        config.data,
        config.eval,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    for batch in watched(prefetch_to_device(batches, mesh)):
        batch.pop("skipped", None)
        worst = program(weights, worst, batch)
    confidence, pixels, labels, predicted = (np.asarray(x) for x in worst)
    found = confidence >= 0
    return Mistakes(pixels[found], labels[found], predicted[found], confidence[found])


def show_inputs(recorder: Recorder, run: Experiment, batch: dict[str, jax.Array]) -> None:
    """A grid of what the first step trains on, where config.log asks for it."""
    config = run.config
    count = min(config.log.images, config.batch_size)
    if count and _shown(config):
        with recorder.evaluating():
            recorder.images(1, "inputs", grid(augmented(batch, 1, config, run.mesh, count)))


def show_mistakes(recorder: Recorder, run: Experiment, state: TrainState, watched: Watched) -> None:
    """A grid of the most confident mistakes, with both names, where config.log asks for it."""
    count, names = run.config.log.images, run.source.class_names
    if not count or not _shown(run.config):
        return
    with recorder.evaluating():
        worst = mistakes(run.evaluation, state, count, watched)
    if len(worst.labels):
        captions = [
            (f"true: {names[label]}", f"said {p:.0%}: {names[predicted]}")
            for label, predicted, p in zip(
                worst.labels, worst.predicted, worst.confidence, strict=True
            )
        ]
        recorder.images(run.total_steps, "mistakes", grid(captioned(worst.pixels, captions), gap=6))


def _shown(config: ConfigDict) -> bool:
    return bool(config.log.tensorboard or config.log.wandb or config.log.mlflow)
