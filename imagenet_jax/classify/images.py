"""Class probabilities of image files, and of every image of the evaluation split."""

import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

from imagenet_jax.data import decode
from imagenet_jax.data.image_files import LooseImage
from imagenet_jax.errors import UserError
from imagenet_jax.progress import announce, track
from imagenet_jax.runtime import xla
from imagenet_jax.runtime.processes import is_first
from imagenet_jax.training.evaluate import Batches, eval_batches, predict
from imagenet_jax.training.experiment import Evaluation, make_evaluation
from imagenet_jax.training.load_weights import Weights
from imagenet_jax.training.sharding import batch_sharding, replicated
from imagenet_jax.training.state import model_graph

_NOT_FINITE = (
    "the model's output is not finite; the weights are damaged, or overflow in bfloat16 "
    "(--config.model.dtype=float32)"
)


class Prediction(NamedTuple):
    """The most likely classes of one image.

    Attributes:
      name: of the image.
      pixels: u8[S, S, 3], the input of the model.
      labels: i64[K], most likely first.
      classes: their names; "class 7" if the names are unknown.
      probabilities: f32[K].
    """

    name: str
    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    probabilities: np.ndarray


class Failure(NamedTuple):
    """An image that has no prediction, and one line that names it and says why."""

    name: str
    reason: str


def predict_images(
    weights: Weights, images: Sequence[LooseImage], top: int
) -> Iterator[Prediction | Failure]:
    """Yield a Prediction of each image in order, and a Failure, possibly earlier, for a bad one.

    Images are decoded as in evaluation and run in batches of at most config.eval.batch_size.

    Args:
      top: number of classes of a Prediction, at most all.
    """
    config, step = weights.config, _compile(weights)
    rows = weights.mesh.size
    while rows < len(images) and 2 * rows <= config.eval.batch_size:  # no larger than needed
        rows *= 2
    remaining = iter(images)
    done: Iterator[Prediction | Failure] = iter(())
    with ThreadPoolExecutor(config.data.threads or os.cpu_count()) as pool:
        while chunk := list(itertools.islice(remaining, rows)):
            decoded = list(pool.map(lambda image: _decode(image, weights), chunk))
            yield from done  # of the chunk before, which the devices run while this one is decoded
            good = [item for item in decoded if not isinstance(item, Failure)]
            yield from (item for item in decoded if isinstance(item, Failure))
            done = iter(())
            if good:
                batch = np.zeros((rows, *good[0][1].shape), np.uint8)
                batch[: len(good)] = [pixels for _, pixels in good]
                with announce("compiling the model"):
                    outputs = step(weights.tree, {"image": batch})
                done = _read_predictions(weights, good, outputs["probabilities"], top)
        yield from done


def _decode(image: LooseImage, weights: Weights) -> tuple[str, np.ndarray] | Failure:
    config = weights.config
    side = config.eval.image_size
    pixels = np.empty((side, side, 3), np.uint8)
    try:
        encoded = image.read()
    except UserError as e:
        return Failure(image.name, str(e))
    try:
        decode.eval_image(
            encoded,
            pixels,
            resize=config.eval.resize,
            interpolation=config.data.interpolation,
            resampling=config.data.resampling,
        )
    except UserError as e:
        return Failure(image.name, f"image {image.name} cannot be decoded: {e}")
    return image.name, pixels


def _read_predictions(
    weights: Weights,
    images: Sequence[tuple[str, np.ndarray]],
    probabilities: jax.Array,
    top: int,
) -> Iterator[Prediction | Failure]:
    names = weights.class_names or [f"class {i}" for i in range(probabilities.shape[1])]
    for (name, pixels), row in zip(images, np.asarray(probabilities), strict=False):
        if np.isfinite(row).all():
            labels = np.argsort(-row, kind="stable")[:top]
            yield Prediction(name, pixels, labels, tuple(names[i] for i in labels), row[labels])
        else:
            yield Failure(name, f"image {name}: {_NOT_FINITE}")


class Predictions(NamedTuple):
    """Class probabilities of a split.

    Attributes:
      indices: i64[N], of the records that can be decoded, in order.
      labels: i32[N], of the data.
      probabilities: f32[N, K], of the classes of the data.
      class_names: readable name of each label.
      outputs: i[K], the model's output for each label.
    """

    indices: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    outputs: np.ndarray


def predict_split(weights: Weights, fingerprint: str = "") -> Predictions:
    """Run every image of config.data.eval_split through the model, and show progress.

    Every process must call it.

    Args:
      fingerprint: required of the split; "": any.

    Raises UserError if the data does not fit the weights, or has another fingerprint.
    """
    config = weights.config
    evaluation = make_evaluation(config, weights.mesh, weights.known)
    source, outputs = evaluation.source, evaluation.outputs
    if fingerprint and source.fingerprint != fingerprint:
        raise UserError(
            f"{source.name} has other images than the run was evaluated on, or they are stored "
            f"differently (fingerprint {source.fingerprint}, not {fingerprint}); give their folder "
            "with --config.data.path=DIR"
        )
    step, size = _compile(weights, outputs), config.eval.batch_size
    batches = watch(eval_batches(evaluation), evaluation, "classifying")
    indices, labels, probabilities = [], [], []
    for k, batch in enumerate(batches):
        batch.pop("skipped", None)
        out = jax.device_get(step(weights.tree, batch))
        (rows,) = np.nonzero(out["mask"] > 0)
        indices.append(k * size + rows)
        labels.append(out["label"][rows])
        probabilities.append(out["probabilities"][rows])
    if outputs is None:
        outputs = np.arange(weights.known.count)
    names = weights.class_names
    return Predictions(
        indices=np.concatenate(indices),
        labels=np.concatenate(labels),
        probabilities=np.concatenate(probabilities),
        class_names=tuple(names[i] for i in outputs) if names else source.class_names,
        outputs=outputs,
    )


def watch(batches: Batches, evaluation: Evaluation, work: str) -> Batches:
    """Yield the batches of an evaluation, and show the progress of `work` on standard error."""
    config, quiet = evaluation.config, not is_first()
    with announce("compiling the model", quiet=quiet):
        yield next(batches)
    size, total = config.eval.batch_size, len(evaluation.source)
    stage = f"{work} {config.data.eval_split}"
    yield from track(batches, stage, total, size=size, already=size, quiet=quiet)


def _compile(weights: Weights, outputs: np.ndarray | None = None) -> jax.stages.Wrapped:
    """Return a program: (tree, batch) -> what the batch has besides images, and "probabilities".

    They are f32[B, C], or f32[B, K] of `outputs`. All results are on every device.
    """
    config, graph = weights.config, model_graph(weights.config.model)

    def run(tree: dict, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        rest = {name: value for name, value in batch.items() if name != "image"}
        found = predict(tree, batch["image"], graph=graph, config=config, outputs=outputs)
        return rest | {"probabilities": found}

    return jax.jit(
        run,
        in_shardings=(
            jax.tree.map(lambda x: x.sharding, weights.tree),
            batch_sharding(weights.mesh),
        ),
        out_shardings=replicated(weights.mesh),
        compiler_options=xla.options(),
    )
