"""Pictures of a run: inputs of the first step, and the worst mistakes after the last one."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont

from imagenet_jax.data import augment
from imagenet_jax.debug.hooks import Hook
from imagenet_jax.errors import printable
from imagenet_jax.logs.recorder import Recorder
from imagenet_jax.runtime import xla
from imagenet_jax.training.evaluate import Watched, eval_batches, predict
from imagenet_jax.training.experiment import Evaluation, Experiment
from imagenet_jax.training.sharding import batch_sharding, get_shardings, replicated
from imagenet_jax.training.state import TrainState
from imagenet_jax.training.step import Batch, step_keys

Array = jax.Array | np.ndarray


class Pictures(Hook):
    """Logs config.log.images inputs of the first step, and as many mistakes after the last step."""

    def __init__(self, run: Experiment, recorder: Recorder):
        self._run, self._recorder = run, recorder
        self._count = min(run.config.log.images, run.config.batch_size)

    def before_update(self, step: int, state: TrainState, batch: Batch) -> None:
        if step == 1:
            with self._recorder.evaluating():
                pixels = augment_first_batch(batch, self._run.config, self._run.mesh, self._count)
                self._recorder.images(1, "inputs", make_grid(pixels))

    def after_evaluation(self, step: int, state: TrainState, watch: Watched) -> None:
        run, names = self._run, self._run.source.class_names
        if step != run.total_steps:
            return
        with self._recorder.evaluating():
            worst = find_mistakes(run.evaluation, state, run.config.log.images, watch)
        if len(worst.labels):
            rows = zip(worst.labels, worst.predicted, worst.confidence, strict=True)
            captions = [
                (f"true: {names[label]}", f"predicted {p:.0%}: {names[predicted]}")
                for label, predicted, p in rows
            ]
            pictures = make_grid(add_captions(np.asarray(worst.pixels), captions), gap=6)
            self._recorder.images(step, "mistakes", pictures)


def augment_first_batch(
    batch: dict[str, jax.Array], config: ConfigDict, mesh: Mesh, count: int
) -> np.ndarray:
    """Return u8[N, H, W, 3]: the first `count` images of the first batch after augmentation.

    The augmentation is that of the first step. It is applied to the whole batch, because images are
    mixed. Then normalization is undone, and values are clipped to bytes. Every process must call
    this.
    """

    def augmented(images: jax.Array, labels: jax.Array, mask: jax.Array | None) -> jax.Array:
        key, _ = step_keys(config.seed, jnp.int32(0))
        pixels, _ = augment.apply(
            images,
            labels,
            key,
            config.augment,
            num_classes=config.model.num_classes,
            mean=config.data.mean,
            std=config.data.std,
            valid=mask,
        )
        rgb = pixels[:count] * jnp.asarray(config.data.std) + jnp.asarray(config.data.mean)
        return jnp.round(jnp.clip(rgb, 0, 1) * 255).astype(jnp.uint8)

    options = xla.options(optimize=False)
    program = jax.jit(augmented, out_shardings=replicated(mesh), compiler_options=options)
    return np.asarray(program(batch["image"], batch["label"], batch.get("mask")))


class Mistakes(NamedTuple):
    """The wrong predictions with the highest confidence, in descending order.

    Attributes:
      pixels: u8[N, S, S, 3], the input of the model.
      labels: i32[N].
      predicted: i32[N].
      confidence: f32[N], the probability of the predicted class.
    """

    pixels: Array
    labels: Array
    predicted: Array
    confidence: Array


def find_mistakes(
    evaluation: Evaluation, state: TrainState, count: int, watch: Watched = iter
) -> Mistakes:
    """Return the (up to) `count` worst mistakes on the evaluation split.

    Uses the EMA weights if the run keeps them, else the raw weights, and takes as long as an
    evaluation. `watch` wraps the batches and may raise to end the search. Every process must call
    this.
    """
    config, mesh, side = evaluation.config, evaluation.mesh, evaluation.config.eval.image_size
    weights = state.weights("raw" if state.ema is None else "ema")

    def update(weights: dict[str, Any], worst: Mistakes, batch: dict[str, jax.Array]) -> Mistakes:
        probabilities = predict(weights, batch["image"], graph=evaluation.graph, config=config)
        predicted = jnp.argmax(probabilities, axis=-1).astype(jnp.int32)
        wrong = (predicted != batch["label"]) & (batch["mask"] > 0)
        confidence = jnp.where(wrong, probabilities.max(axis=-1), -1.0).astype(jnp.float32)
        mine = Mistakes(batch["image"], batch["label"], predicted, confidence)
        both = jax.tree.map(lambda *parts: jnp.concatenate(parts), worst, mine)
        _, chosen = jax.lax.top_k(both.confidence, count)
        return jax.tree.map(lambda x: x[chosen], both)

    program = jax.jit(
        update,
        in_shardings=(get_shardings(weights), replicated(mesh), batch_sharding(mesh)),
        out_shardings=replicated(mesh),
        compiler_options=xla.options(),
    )
    none, pixels = np.zeros(count, np.int32), np.zeros((count, side, side, 3), np.uint8)
    worst = Mistakes(pixels, none, none, np.full(count, -1.0, np.float32))
    for batch in watch(eval_batches(evaluation)):
        batch.pop("skipped", None)
        worst = program(weights, worst, batch)
    found = np.asarray(worst.confidence) >= 0
    return Mistakes(*(np.asarray(x)[found] for x in worst))


_WHITE = 255
_MIN_SIDE = 128  # pixels, so that captions are readable
_LINE_HEIGHT = 14  # of captions, in pixels
_FONT_SIZE = 11  # of captions, in points


def make_grid(pictures: np.ndarray, gap: int = 2) -> np.ndarray:
    """Return a grid u8[rows * (H + gap) + gap, ..., 3] of pictures u8[N, H, W, 3], on white.

    A row has about as many pictures as there are rows.
    """
    count, height, width, _ = pictures.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    before = ((0, rows * columns - count), (gap, 0), (gap, 0), (0, 0))
    cells = np.pad(pictures, before, constant_values=_WHITE)
    shape = (rows, columns, height + gap, width + gap, 3)
    joined = cells.reshape(shape).swapaxes(1, 2).reshape(rows * shape[2], columns * shape[3], 3)
    return np.pad(joined, ((0, gap), (0, gap), (0, 0)), constant_values=_WHITE)


def add_captions(pictures: np.ndarray, captions: Sequence[Sequence[str]]) -> np.ndarray:
    """Return pictures u8[N, H, W, 3] with captions below them, as u8[N, H', W', 3].

    Lines of a caption are truncated to the width of the picture. Small pictures are enlarged by an
    integer factor, without interpolation.
    """
    factor = math.ceil(_MIN_SIDE / min(pictures.shape[1:3]))
    large = pictures.repeat(factor, axis=1).repeat(factor, axis=2)
    lines = max(map(len, captions))
    below = np.full((len(large), lines * _LINE_HEIGHT + 4, large.shape[2], 3), _WHITE, np.uint8)
    for strip, caption in zip(below, captions, strict=True):
        strip[:] = _draw_lines(caption, strip.shape[0], strip.shape[1])
    return np.concatenate([large, below], axis=1)


def _draw_lines(lines: Sequence[str], height: int, width: int) -> np.ndarray:
    image = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(_FONT_SIZE)
    for i, line in enumerate(map(printable, lines)):
        if draw.textlength(line, font) > width - 4:
            while line and draw.textlength(line + "...", font) > width - 4:
                line = line[:-1]
            line += "..."
        draw.text((2, i * _LINE_HEIGHT), line, "black", font)
    return np.asarray(image)
