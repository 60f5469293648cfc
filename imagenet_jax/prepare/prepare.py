"""Prepare a data set: plan the shards, write those that are missing, publish the directory."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagenet_jax.data import tfds_format
from imagenet_jax.data.pool import Pool
from imagenet_jax.errors import UserError
from imagenet_jax.prepare import imagenet, shards
from imagenet_jax.prepare.dataset import Dataset
from imagenet_jax.prepare.images import Storage
from imagenet_jax.prepare.index import Index
from imagenet_jax.prepare.progress import Reporter
from imagenet_jax.prepare.workspace import Workspace, provenance

_FORMAT = 3  # a change of what is stored, or how, makes older unfinished work worthless


def prepare(
    dataset: Dataset, out: Path, storage: Storage, *, workers: int, shard_bytes: float
) -> Path:
    """Write OUT/NAME/VERSION and return it; continue where an earlier run ended.

    The files do not depend on `workers`. `shard_bytes` is the size of a shard's input. Raises
    UserError for bad input; finished shards then stay for the next run.
    """
    target = out / dataset.stored_name(storage) / dataset.version
    if target.exists():
        source = provenance(target)
        print(
            f"{target} is finished{f', from {source}' if source else ''}: nothing to do "
            "(delete it to prepare it anew)"
        )
        return target
    identity = dataset.identity | {
        "source": dataset.source,
        "storage": list(storage),
        "shard_bytes": shard_bytes,
        "format": _FORMAT,
    }
    work = Workspace(target, identity)
    try:
        if work.fate == "restarted":
            print("the inputs or options have changed since the unfinished run: starting anew")
        with Pool(workers) as pool:
            splits = dataset.scan(pool)
            tasks = {
                split: shards.plan(index, dataset.stored_name(storage), split, shard_bytes)
                for split, index in splits.items()
            }
            _write_missing(work, pool, splits, tasks, storage)
        done = _finish(dataset, storage, work, tasks)
    finally:
        work.close()
    _summarize(target, dataset, storage, splits, done)
    return target


def _write_missing(
    work: Workspace,
    pool: Pool,
    splits: dict[str, Index],
    tasks: dict[str, list[shards.Task]],
    storage: Storage,
) -> None:
    everything = [task for some in tasks.values() for task in some]
    missing = [task for task in everything if not work.done(task.file)]

    def size(task: shards.Task) -> int:
        return int(splits[task.split].sizes[task.start : task.stop].sum())

    total, left = sum(map(size, everything)), sum(map(size, missing))
    if len(missing) < len(everything):
        print(f"{len(everything) - len(missing)} of {len(everything)} shards are done already")
    free = shutil.disk_usage(work.path).free
    if not storage.resize and left > free:
        raise UserError(
            f"--out: {work.path} needs {left / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free"
        )

    def calls() -> Iterator[tuple[shards.Task, tuple[Any, ...]]]:
        for task in missing:
            index = splits[task.split]
            entries = index.entries(task.start, task.stop)
            yield task, (work.path / task.file, index.root, entries, storage)

    with Reporter("writing", total, already=total - left) as reporter:
        for task, done in pool.run(shards.write, calls()):
            work.finished(task.file, done)
            reporter.advance(size(task))


def _finish(
    dataset: Dataset, storage: Storage, work: Workspace, tasks: dict[str, list[shards.Task]]
) -> dict[str, list[shards.Done]]:
    """Write the metadata and rename the directory; return the shards of each split."""
    description = dataset.description
    if storage.resize:
        description += (
            f" Larger images were shrunk to {storage.resize} pixels on their shorter side "
            f"(Lanczos) and stored as JPEG of quality {storage.quality}."
        )
    infos, finished = [], {}
    for split, some in tasks.items():
        done = finished[split] = [shard for task in some if (shard := work.done(task.file))]
        assert len(done) == len(some)  # each was just written or checked
        infos.append(
            tfds_format.split_info(
                work.path,
                dataset.stored_name(storage),
                split,
                shard_lengths=[shard.records for shard in done],
                num_bytes=sum(shard.num_bytes for shard in done),
            )
        )
    features = tfds_format.image_features(dataset.class_names, storage.encoding)
    tfds_format.write_metadata(
        work.path, features, infos, version=dataset.version, description=description
    )
    work.publish([task.file for some in tasks.values() for task in some])
    return finished


def _summarize(
    target: Path,
    dataset: Dataset,
    storage: Storage,
    splits: dict[str, Index],
    done: dict[str, list[shards.Done]],
) -> None:
    for split, index in splits.items():
        print(f"{split}: {len(index):,} images in {len(done[split]):,} shards")
        official = imagenet.OFFICIAL.get(split)
        if dataset.name == "imagenet2012" and len(index) != official:
            print(f"warning: ImageNet's {split} has {official:,}")
    everything = [shard for some in done.values() for shard in some]
    if storage.resize:
        print(f"{sum(shard.resized for shard in everything):,} images resized to {storage.resize}")
    repaired = [name for shard in everything for name in shard.repaired]
    names = ", ".join(sorted(repaired)[:30]) + (", ..." if len(repaired) > 30 else "")
    print(f"{len(repaired):,} images repaired{': ' if repaired else ''}{names}")
    print(f"{target} is finished; train with --config.data.path={target}")
