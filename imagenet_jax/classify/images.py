"""What weights say of images: of files, or of the whole evaluation split."""

import collections
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from imagenet_jax.classify.page import Failure, Prediction
from imagenet_jax.data import decode, pipeline
from imagenet_jax.data.loose_images import LooseImage
from imagenet_jax.errors import UserError
from imagenet_jax.runtime import xla
from imagenet_jax.training.experiment import make_evaluation
from imagenet_jax.training.load_weights import Weights
from imagenet_jax.training.sharding import batch_sharding, replicated
from imagenet_jax.training.state import graph_of
from imagenet_jax.training.step import predict

_REASON = "the weights are damaged, or overflow in bfloat16 (--config.model.dtype=float32)"


def predict_images(
    weights: Weights, images: Sequence[LooseImage], top: int
) -> Iterator[Prediction | Failure]:
    """A Prediction of each image in order, and a Failure, perhaps earlier, of each bad one.

    Images are decoded as evaluation decodes them, in threads, and run in batches of at most
    config.eval.batch_size. `top` classes are named, or all where there are fewer.
    """
    config = weights.config
    step = _compile(weights)
    # Doubled until all images fit: a single image is not computed 256 times.
    rows = weights.mesh.size
    while rows < len(images) and 2 * rows <= config.eval.batch_size:
        rows *= 2
    decoded = _decode_all(images, config, ahead=2 * rows)
    while chunk := list(itertools.islice(decoded, rows)):
        good: list[tuple[str, np.ndarray]] = []
        for name, result in chunk:
            if isinstance(result, UserError):
                yield Failure(name, str(result))
            else:
                good.append((name, result))
        if not good:
            continue
        batch = np.zeros((rows, *good[0][1].shape), np.uint8)
        batch[: len(good)] = [pixels for _, pixels in good]
        for (name, pixels), row in zip(good, np.asarray(step(weights.tree, batch)), strict=False):
            if not np.isfinite(row).all():
                yield Failure(name, f"image {name}: the model's output is not finite; {_REASON}")
                continue
            labels = np.argsort(-row, kind="stable")[:top]
            classes = tuple(_class_name(weights, int(label)) for label in labels)
            yield Prediction(name, pixels, labels, classes, row[labels])


class Predictions(NamedTuple):
    """What weights say of a split.

    Attributes:
      indices: i64[N], of the records that can be decoded, in order.
      labels: i32[N], of the data.
      probabilities: f32[N, K], of the classes of the data.
      class_names: label -> name for people.
      outputs: i[K], the output of the head that each label means.
    """

    indices: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    outputs: np.ndarray


def predict_split(weights: Weights, fingerprint: str = "") -> Predictions:
    """One pass over config.data.eval_split.

    Raises UserError where the data does not fit the weights, or has another `fingerprint`, if one
    is given.
    """
    config = weights.config
    evaluation = make_evaluation(config, weights.mesh, weights.known)
    source, outputs = evaluation.source, evaluation.outputs
    if fingerprint and source.fingerprint != fingerprint:
        raise UserError(
            f"{source.name} has other images than the run was evaluated on, or the same stored "
            f"otherwise (fingerprint {source.fingerprint}, not {fingerprint}); say where those "
            "are with --config.data.path=DIR"
        )
    step = _compile(weights, outputs)
    indices, labels, probabilities = [], [], []
    for k, batch in enumerate(pipeline.eval_batches(source, config.data, config.eval)):
        (kept,) = np.nonzero(batch["mask"] > 0)
        indices.append(k * config.eval.batch_size + kept)
        labels.append(batch["label"][kept])
        probabilities.append(np.asarray(step(weights.tree, batch["image"]))[kept])
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


def _compile(weights: Weights, outputs: np.ndarray | None = None) -> jax.stages.Wrapped:
    """(tree, u8[B, S, S, 3]) -> probabilities f32[B, C], or of `outputs`, on every device."""
    config, graph = weights.config, graph_of(weights.config.model)
    return jax.jit(
        lambda tree, pixels: predict(tree, pixels, graph=graph, config=config, outputs=outputs),
        in_shardings=(
            jax.tree.map(lambda x: x.sharding, weights.tree),
            batch_sharding(weights.mesh),
        ),
        out_shardings=replicated(weights.mesh),
        compiler_options=xla.options(),
    )


def _class_name(weights: Weights, label: int) -> str:
    return weights.class_names[label] if weights.class_names else f"class {label}"


def _decode_all(
    images: Iterable[LooseImage], config: ConfigDict, ahead: int
) -> Iterator[tuple[str, np.ndarray | UserError]]:
    """(name, pixels or what is wrong) in order; `ahead` images are decoded before they are used."""

    def pixels_of(image: LooseImage) -> np.ndarray | UserError:
        out = np.empty((config.eval.image_size, config.eval.image_size, 3), np.uint8)
        try:
            encoded = image.read()
        except UserError as e:
            return e
        try:
            decode.eval_image(
                encoded,
                out,
                resize=config.eval.resize,
                interpolation=config.data.interpolation,
                resampling=config.data.resampling,
            )
        except UserError as e:
            return UserError(f"image {image.name} cannot be decoded: {e}")
        return out

    waiting: collections.deque[tuple[str, Future[np.ndarray | UserError]]] = collections.deque()
    with ThreadPoolExecutor(config.data.threads or os.cpu_count()) as pool:
        try:
            for image in images:
                waiting.append((image.name, pool.submit(pixels_of, image)))
                if len(waiting) > ahead:
                    name, future = waiting.popleft()
                    yield name, future.result()
            while waiting:
                name, future = waiting.popleft()
                yield name, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
