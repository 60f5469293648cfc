"""Batches: grain runs them in threads or processes, ahead of time; what they hold is pure.

Element k of a pipeline is this process's rows of global batch k, a function of (source, seed, k)
alone. So the position of a run is one number, resuming reads nothing again, and neither threads,
workers nor hosts can change a sample.
"""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from multiprocessing import resource_tracker
from typing import Any

import grain
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from imagenet_jax.data import decode
from imagenet_jax.data.pool import end_with_parent
from imagenet_jax.data.resolution import resolution_of
from imagenet_jax.data.sampler import Sampler, record_uniforms
from imagenet_jax.data.sources import Source
from imagenet_jax.data.tfds_format import Record
from imagenet_jax.errors import UserError

Batch = dict[str, Any]

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def make_sampler(source: Source, data: ConfigDict, *, seed: int, batch_size: int) -> Sampler:
    """The order of the records of a run, as `config.data` has it; `batch_size` is global.

    Balancing classes takes their labels: a tfds directory is read once for them.
    """
    labels = source.labels() if data.balance != "none" else None
    return Sampler(
        len(source),
        seed=seed,
        batch_size=batch_size,
        remainder=data.remainder,
        repeats=data.repeated_aug,
        balance=data.balance,
        labels=labels,
    )


def train_batches(
    source: Source,
    sampler: Sampler,
    data: ConfigDict,
    augment: ConfigDict,
    *,
    total_steps: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """This process's rows of batches start_step .. total_steps - 1 of the run.

    Args:
      sampler: from `make_sampler`; each process gets an equal share of a batch, in row order.
      data, augment: `config.data` and `config.augment`.
      start_step: batches consumed before; nothing of them is read.

    Returns:
      An iterator of {"image": u8[b, S, S, 3], "label": i32[b]}, S by step as `resolution_of` says;
      errors of a record are UserErrors that name it. With data.undecodable = "skip" also "mask":
      f32[b], 0 for an image that could not be decoded, and "skipped": their names.
    """
    load = TrainRows(source, sampler, data, augment, process_index, process_count)
    rows = sampler.batch_size // process_count
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
      filled with rows of mask 0. Every process gets the same number of batches. "skipped" as in
      `train_batches`.
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
        sampler: Sampler,
        data: ConfigDict,
        augment: ConfigDict,
        process_index: int,
        process_count: int,
    ):
        self._source, self._sampler = source, sampler
        self._rows = _share(sampler.batch_size, process_index, process_count)
        self._resolution = resolution_of(augment, sampler.steps_per_epoch)
        self._judge = _Judge(source, data)
        self._crop: dict[str, Any] = {
            "scale": tuple(augment.crop_scale),
            "ratio": tuple(augment.crop_ratio),
            "interpolation": data.interpolation,
            "resampling": data.resampling,
        }

    def __call__(self, step: int) -> Batch:
        where = self._sampler.rows(step, self._rows)
        uniforms = record_uniforms(self._sampler.seed, *where, decode.CROP_DRAWS)
        batch = _empty(
            len(self._rows),
            self._resolution.at(step + Fraction(self._sampler.shift, self._sampler.batch_size)),
        )
        mask, skipped = np.ones(len(self._rows), np.float32), []
        for row, index in enumerate(where[1]):
            record = self._source[int(index)]
            batch["label"][row] = self._judge.label(record)
            try:
                decode.train_image(
                    record["image"], batch["image"][row], uniforms[row], **self._crop
                )
            except decode.UndecodableImage as e:
                self._judge.skip(record, e, batch["image"][row])
                mask[row] = 0
                skipped.append(record["id"])
        return batch | {"mask": mask, "skipped": skipped} if self._judge.skips else batch


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
        self._judge = _Judge(source, data)
        self._side, self._resize = evaluation.image_size, evaluation.resize
        self._resampling = {"interpolation": data.interpolation, "resampling": data.resampling}

    def __call__(self, step: int) -> Batch:
        first = step * self._batch_size
        batch = _empty(len(self._rows), self._side)
        mask, skipped = np.zeros(len(self._rows), np.float32), []
        for row, place in enumerate(self._rows):
            if first + place >= len(self._source):
                batch["image"][row:] = 0
                batch["label"][row:] = 0
                break
            record = self._source[first + place]
            batch["label"][row] = self._judge.label(record)
            try:
                decode.eval_image(
                    record["image"], batch["image"][row], resize=self._resize, **self._resampling
                )
                mask[row] = 1
            except decode.UndecodableImage as e:
                self._judge.skip(record, e, batch["image"][row])
                skipped.append(record["id"])
        return batch | {"mask": mask} | ({"skipped": skipped} if self._judge.skips else {})


class _Judge:
    """What becomes of a record that training cannot use."""

    def __init__(self, source: Source, data: ConfigDict):
        self.skips = data.undecodable == "skip"
        self._classes = len(source.class_names)
        self._mean = np.round(np.asarray(data.mean) * 255).astype(np.uint8)

    def label(self, record: Record) -> int:
        """The record's; UserError where it is none, as in tfds's test splits."""
        if not 0 <= record["label"] < self._classes:
            raise UserError(
                f"image {record['id']} has label {record['label']}, not one of the "
                f"{self._classes} classes; use another split or prepare the data again"
            )
        return record["label"]

    def skip(self, record: Record, error: decode.UndecodableImage, row: np.ndarray) -> None:
        """Paint the row u8[S, S, 3] in the mean color, or stop the run with a UserError."""
        if not self.skips:
            raise UserError(
                f"image {record['id']} cannot be decoded: {error}; `python -m imagenet_jax.doctor` "
                "finds all such, --config.data.undecodable=skip trains without them"
            ) from error
        # Fill with the mean color, so that the row barely affects batch-norm statistics.
        row[...] = self._mean


def _share(batch_size: int, process_index: int, process_count: int) -> range:
    rows = batch_size // process_count
    return range(process_index * rows, (process_index + 1) * rows)


def _empty(rows: int, side: int) -> Batch:
    return {
        "image": np.empty((rows, side, side, 3), np.uint8),
        "label": np.empty(rows, np.int32),
    }


def _iterate(
    load: Callable[[int], Batch], start: int, stop: int, data: ConfigDict, batch_bytes: int
) -> Iterator[Batch]:
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
        one_by_one = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0))
        return _from_workers(iter(one_by_one.mp_prefetch(options, _start_worker)))
    threads = min(threads, ahead)
    buffer = min(ahead, 2 * threads)
    return iter(
        dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer))
    )


def _from_workers(batches: grain.DatasetIterator) -> Iterator[Batch]:
    """Yield `batches`, whose worker processes start with stop signals blocked.

    A signal to the process group must not end a worker, from its first moment on: the trainer
    stops it after saving. Threads and processes inherit the mask of the thread that starts them.
    """
    resource_tracker.ensure_running()  # starting it unblocks the signals
    starter = ThreadPoolExecutor(
        1, initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, _STOP_SIGNALS)
    )
    try:
        first = starter.submit(next, batches, None).result()
        if first is not None:
            yield first
            yield from batches
    except RuntimeError as e:
        if "terminated unexpectedly" not in str(e):
            raise
        raise UserError(
            f"a worker process of config.data.workers died, probably because memory ran out: {e} "
            "Use fewer workers, or less of config.data.prefetch_mb"
        ) from e
    finally:
        starter.shutdown(wait=False)


def _start_worker(index: int, count: int) -> None:
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
