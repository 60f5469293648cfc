"""Batches: grain runs them in threads or processes, ahead of time; what they hold is pure.

Element k of a pipeline is this process's rows of global batch k, a function of (source, seed, k)
alone. So the position of a run is one number, resuming reads nothing again, and neither threads,
workers nor hosts can change a sample.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from imagenet_jax.data import decode
from imagenet_jax.data.order import Order, record_uniforms
from imagenet_jax.data.sources import Source
from imagenet_jax.errors import UserError

Batch = dict[str, np.ndarray]


def train_batches(
    source: Source,
    data: ConfigDict,
    augment: ConfigDict,
    *,
    seed: int,
    batch_size: int,
    total_steps: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """This process's rows of batches start_step .. total_steps - 1 of the run.

    Args:
      data, augment: `config.data` and `config.augment`.
      batch_size: global; each process gets an equal share, in row order.
      start_step: batches consumed before; nothing of them is read.

    Returns:
      An iterator of {"image": u8[b, S, S, 3], "label": i32[b]}; errors of a record are UserErrors
      that name it.
    """
    load = TrainRows(source, data, augment, seed, batch_size, process_index, process_count)
    rows = batch_size // process_count
    return _iterate(load, start_step, total_steps, data, rows * augment.image_size**2 * 3)


def eval_batches(
    source: Source,
    data: ConfigDict,
    evaluation: ConfigDict,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """This process's rows of the split, each record once, in order.

    Args:
      data, evaluation: `config.data` and `config.eval`.

    Returns:
      An iterator of {"image": u8[b, S, S, 3], "label": i32[b], "mask": f32[b]}: the last batch is
      filled with rows of mask 0. Every process gets the same number of batches.
    """
    load = EvalRows(source, data, evaluation, process_index, process_count)
    rows = evaluation.batch_size // process_count
    count = -(-len(source) // evaluation.batch_size)
    return _iterate(load, 0, count, data, rows * evaluation.image_size**2 * 3)


class TrainRows:
    """k -> this process's rows of training batch k."""

    def __init__(
        self,
        source: Source,
        data: ConfigDict,
        augment: ConfigDict,
        seed: int,
        batch_size: int,
        process_index: int,
        process_count: int,
    ):
        self._source = source
        self._order = Order(len(source), seed=seed, batch_size=batch_size, remainder=data.remainder)
        self._batch_size = batch_size
        self._rows = _share(batch_size, process_index, process_count)
        self._side = augment.image_size
        self._crop: dict[str, Any] = {
            "scale": tuple(augment.crop_scale),
            "ratio": tuple(augment.crop_ratio),
            "interpolation": data.interpolation,
            "resampling": data.resampling,
        }

    def __call__(self, step: int) -> Batch:
        first = step * self._batch_size
        epochs, indices = self._order.records(first + self._rows.start, first + self._rows.stop)
        uniforms = record_uniforms(self._order.seed, epochs, indices, decode.CROP_DRAWS)
        batch = _empty(len(indices), self._side)
        for row, index in enumerate(indices):
            record = self._source[int(index)]
            batch["label"][row] = record["label"]
            with _naming(record["id"]):
                decode.train_image(
                    record["image"], batch["image"][row], uniforms[row], **self._crop
                )
        return batch


class EvalRows:
    """k -> this process's rows of evaluation batch k."""

    def __init__(
        self,
        source: Source,
        data: ConfigDict,
        evaluation: ConfigDict,
        process_index: int,
        process_count: int,
    ):
        self._source = source
        self._batch_size = evaluation.batch_size
        self._rows = _share(evaluation.batch_size, process_index, process_count)
        self._side, self._resize = evaluation.image_size, evaluation.resize
        self._resampling = {"interpolation": data.interpolation, "resampling": data.resampling}

    def __call__(self, step: int) -> Batch:
        first = step * self._batch_size
        batch = _empty(len(self._rows), self._side) | {
            "mask": np.zeros(len(self._rows), np.float32)
        }
        for row, place in enumerate(self._rows):
            if first + place >= len(self._source):
                batch["image"][row:] = 0
                batch["label"][row:] = 0
                break
            record = self._source[first + place]
            batch["label"][row], batch["mask"][row] = record["label"], 1
            with _naming(record["id"]):
                decode.eval_image(
                    record["image"], batch["image"][row], resize=self._resize, **self._resampling
                )
        return batch


def _share(batch_size: int, process_index: int, process_count: int) -> range:
    rows = batch_size // process_count
    return range(process_index * rows, (process_index + 1) * rows)


def _empty(rows: int, side: int) -> Batch:
    return {
        "image": np.empty((rows, side, side, 3), np.uint8),
        "label": np.empty(rows, np.int32),
    }


class _naming:
    """Adds the record's name to the error of one that cannot be decoded."""

    def __init__(self, name: str):
        self._name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, decode.UndecodableImage):
            raise UserError(f"image {self._name} cannot be decoded: {error}") from error


def _iterate(
    load: Callable[[int], Batch], start: int, stop: int, data: ConfigDict, batch_bytes: int
) -> grain.DatasetIterator:
    """Batches start .. stop - 1 of `load`, made ahead of time within `data.prefetch_mb`.

    The range starts where the run stands, rather than an iterator being moved there: grain's own
    states differ between threads and workers, and a run may change from one to the other.
    """
    ahead = max(2, int(data.prefetch_mb * 2**20) // batch_bytes)
    threads = data.threads or os.cpu_count() or 1
    dataset = grain.MapDataset.range(start, stop).map(load)
    if data.workers:
        if not flags.FLAGS.is_parsed():  # grain's workers read absl flags, which we do not use
            flags.FLAGS.mark_as_parsed()
        # A worker decodes one batch at a time and holds one more.
        per_worker = max(1, min(ahead // data.workers - 1, 4))
        options = grain.MultiprocessingOptions(data.workers, per_worker_buffer_size=per_worker)
        iterator = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0)).mp_prefetch(options)
    else:
        threads = min(threads, ahead)
        buffer = min(ahead, 2 * threads)
        iterator = dataset.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
        )
    return iter(iterator)
