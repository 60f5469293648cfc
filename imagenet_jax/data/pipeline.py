"""Batches of decoded images, which grain prefetches in threads or worker processes.

Element k of a pipeline holds the rows of global batch k that belong to this process: a pure
function of (source, seed, k). The position of a run is therefore a single number, resuming reads
nothing twice, and samples do not depend on the number of threads, workers or hosts.
"""

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, Self

import grain
import numpy as np
from ml_collections import ConfigDict

from imagenet_jax.data import Source, decode
from imagenet_jax.data.image_formats import UndecodableImage
from imagenet_jax.data.sampler import Sampler, record_uniforms
from imagenet_jax.errors import UserError

Batch = dict[str, Any]


def make_sampler(source: Source, data: ConfigDict, *, seed: int, batch_size: int) -> Sampler:
    """Return the order of the records in a run with a global `batch_size`.

    Balancing classes needs all labels, for which a tfds data set is read once.
    """
    labels = source.labels() if data.balance != "none" else None
    options = {"repeats": data.repeated_aug, "balance": data.balance, "remainder": data.remainder}
    return Sampler(len(source), seed=seed, batch_size=batch_size, labels=labels, **options)


def train_batches(
    source: Source,
    sampler: Sampler,
    config: ConfigDict,
    *,
    total_steps: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Return this process's rows of batches start_step .. total_steps - 1 of the run.

    Args:
      sampler: from `make_sampler`.
      config: `config.data` and `config.augment` are used.
      start_step: number of batches that were consumed earlier; they are not read.
      process_index, process_count: each process gets an equal part of a batch, in row order.

    Returns:
      An iterator of {"image": u8[b, S, S, 3], "label": i32[b]}; S may grow, see `Resolution`. If
      config.data.undecodable is "skip", also "mask": f32[b], 0 for images that cannot be decoded,
      and "skipped": their names. It raises UserError, naming the record, for other bad records.
    """
    rows = _rows_of_process(sampler.batch_size, process_index, process_count)
    load = _TrainLoader(source, sampler, config, rows)
    batch_bytes = len(rows) * config.augment.image_size**2 * 3
    return _iterate(load, start_step, total_steps, config.data, batch_bytes)


def eval_batches(
    source: Source, config: ConfigDict, *, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Return this process's rows of the whole split, each record once and in order.

    Args:
      config: `config.data` and `config.eval` are used.

    Returns:
      An iterator of {"image": u8[b, S, S, 3], "label": i32[b], "mask": f32[b]}, and "skipped" as in
      `train_batches`. The last batch is padded with rows whose mask is 0, and every process gets
      the same number of batches.
    """
    size = config.eval.batch_size
    rows = _rows_of_process(size, process_index, process_count)
    load = _EvalLoader(source, config, rows)
    batch_bytes = len(rows) * config.eval.image_size**2 * 3
    return _iterate(load, 0, -(-len(source) // size), config.data, batch_bytes)


def _rows_of_process(batch_size: int, process_index: int, process_count: int) -> range:
    rows = batch_size // process_count
    return range(process_index * rows, (process_index + 1) * rows)


@dataclasses.dataclass(frozen=True)
class Resolution:
    """Progressive resizing: the side of the training crops in pixels, as a function of the step.

    It grows linearly from `start` at epoch `ramp[0]` to `final` at epoch `ramp[1]`, is rounded to a
    multiple of `multiple` so that the step is compiled for few shapes, and is constant within an
    epoch. This is the schedule of FFCV's ImageNet recipe (Leclerc et al. 2022, arXiv:2306.12517).
    """

    start: int
    final: int
    ramp: tuple[float, float]
    multiple: int
    steps_per_epoch: Fraction

    @classmethod
    def from_config(cls, augment: ConfigDict, steps_per_epoch: Fraction) -> Self:
        """Return the schedule of `config.augment`."""
        start, ramp = augment.start_size or augment.image_size, tuple(augment.size_ramp)
        return cls(start, augment.image_size, ramp, augment.size_multiple, steps_per_epoch)

    def at(self, step: Fraction | int) -> int:
        """Return the side at `step`, counted from 0."""
        if self.start == self.final:
            return self.final
        low, high = self.ramp
        # A step belongs to the epoch of its first image.
        epoch = math.floor(Fraction(step) / Fraction(self.steps_per_epoch))
        if epoch >= high:
            return self.final
        side = self.start + (self.final - self.start) * max(0.0, epoch - low) / (high - low)
        rounded = math.floor(side / self.multiple + 0.5) * self.multiple
        return min(self.final, max(self.start, rounded))


class _Loader:
    """Reads and decodes records into the rows of a batch."""

    def __init__(self, source: Source, config: ConfigDict, rows: range):
        self._source, self._rows = source, rows
        self._resampling = {key: config.data[key] for key in ("interpolation", "resampling")}
        self._skip = config.data.undecodable == "skip"
        self._mean = np.round(np.asarray(config.data.mean) * 255).astype(np.uint8)

    def _load(
        self, side: int, indices: Sequence[int], decoders: Iterable[Callable[..., None]]
    ) -> Batch:
        """Return a batch with the records in its first rows. Other rows are 0, as is their mask."""
        count, classes = len(self._rows), len(self._source.class_names)
        images, labels = np.zeros((count, side, side, 3), np.uint8), np.zeros(count, np.int32)
        mask, skipped = np.zeros(count, np.float32), []
        for row, (index, decode_into) in enumerate(zip(indices, decoders, strict=False)):
            record = self._source[index]
            name, label = record["id"], record["label"]
            if not 0 <= label < classes:  # such as -1 in the test splits of tfds
                raise UserError(
                    f"image {name} has label {label}, not one of the {classes} classes; use "
                    "another split or prepare the data again"
                )
            labels[row] = label
            try:
                decode_into(record["image"], images[row])
                mask[row] = 1
            except UndecodableImage as e:
                if not self._skip:
                    raise UserError(
                        f"image {name} cannot be decoded: {e}; `python -m imagenet_jax.doctor` "
                        "finds all such images, --config.data.undecodable=skip trains without them"
                    ) from e
                images[row] = self._mean  # so that the row barely affects batch-norm statistics
                skipped.append(name)
        batch = {"image": images, "label": labels, "mask": mask}
        return batch | {"skipped": skipped} if self._skip else batch


class _TrainLoader(_Loader):
    """Maps k to this process's rows of training batch k."""

    def __init__(self, source: Source, sampler: Sampler, config: ConfigDict, rows: range):
        super().__init__(source, config, rows)
        self._sampler = sampler
        self._resolution = Resolution.from_config(config.augment, sampler.steps_per_epoch)
        scale, ratio = tuple(config.augment.crop_scale), tuple(config.augment.crop_ratio)
        self._decode = functools.partial(
            decode.train_image, scale=scale, ratio=ratio, **self._resampling
        )

    def __call__(self, step: int) -> Batch:
        epochs, indices, copies = self._sampler.rows(step, self._rows)
        uniforms = record_uniforms(self._sampler.seed, epochs, indices, copies, decode.CROP_DRAWS)
        shift = Fraction(self._sampler.shift, self._sampler.batch_size)
        decoders = (functools.partial(self._decode, uniforms=u) for u in uniforms)
        batch = self._load(self._resolution.at(step + shift), indices.tolist(), decoders)
        return batch if self._skip else {"image": batch["image"], "label": batch["label"]}


class _EvalLoader(_Loader):
    """Maps k to this process's rows of evaluation batch k."""

    def __init__(self, source: Source, config: ConfigDict, rows: range):
        super().__init__(source, config, rows)
        self._batch_size, self._side = config.eval.batch_size, config.eval.image_size
        self._decode = functools.partial(
            decode.eval_image, resize=config.eval.resize, **self._resampling
        )

    def __call__(self, step: int) -> Batch:
        first = step * self._batch_size + self._rows.start
        last = min(len(self._source), first + len(self._rows))
        return self._load(self._side, range(first, last), itertools.repeat(self._decode))


def _iterate(
    load: Callable[[int], Batch], start: int, stop: int, data: ConfigDict, batch_bytes: int
) -> Iterator[Batch]:
    """Yield load(start) .. load(stop - 1), and prefetch up to `config.data.prefetch_mb`.

    To resume, start a new range. The states of grain's iterators are not used, because they differ
    between threads and workers, and a run may switch from one to the other.
    """
    ahead = max(2, int(data.prefetch_mb * 2**20) // batch_bytes)
    dataset = grain.MapDataset.range(start, stop).map(load)
    if data.workers:
        from imagenet_jax.data.workers import iterate_in_workers

        return iterate_in_workers(dataset, data.workers, ahead)
    threads = min(data.threads or os.cpu_count() or 1, ahead)
    options = grain.ReadOptions(threads, prefetch_buffer_size=min(ahead, 2 * threads))
    return iter(dataset.to_iter_dataset(options))
