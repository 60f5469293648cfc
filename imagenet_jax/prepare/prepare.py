"""Preparation of a data set: plan the shards, write the missing ones, publish the directory."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagenet_jax.data import tfds_format
from imagenet_jax.data.workers import Pool
from imagenet_jax.errors import UserError
from imagenet_jax.formatting import counted, format_bytes
from imagenet_jax.prepare import shards
from imagenet_jax.prepare.shards import SplitInput, Storage, Task, WrittenShard
from imagenet_jax.prepare.workspace import Workspace, read_origin
from imagenet_jax.progress import ProgressReporter

_FORMAT = 3  # increase to discard unfinished work when what is stored changes


@dataclass(frozen=True)
class Dataset:
    """A data set to prepare.

    Attributes:
      name: of the tfds data set, without the suffix for resizing.
      version: of the tfds data set.
      class_names: label -> name.
      description: for dataset_info.json.
      source: where it comes from, for messages.
      identity: JSON that changes if an input changes.
      encoding: how images are stored, "jpeg" or "png".
      scan: returns the images of every split; it may use the workers.
      expected: split -> number of images that it should have.
    """

    name: str
    version: str
    class_names: tuple[str, ...]
    description: str
    source: str
    identity: dict[str, Any]
    encoding: str
    scan: Callable[[Pool], dict[str, SplitInput]]
    expected: dict[str, int] = field(default_factory=dict)

    def stored_name(self, storage: Storage) -> str:
        """Return the name with size and quality, which tells resized images from originals."""
        return self.name + (f"_{storage.resize}q{storage.quality}" if storage.resize else "")


def prepare(
    dataset: Dataset, out: Path, storage: Storage, *, workers: int, shard_bytes: float
) -> Path:
    """Write OUT/NAME/VERSION and return it; continue where an earlier run stopped.

    The files do not depend on `workers`. `shard_bytes` is the size of a shard's input. Raises
    UserError for bad input; finished shards are kept for the next run.
    """
    name = dataset.stored_name(storage)
    target = out / name / dataset.version
    if target.exists():
        source = read_origin(target)
        print(
            f"{target} is finished{f', from {source}' if source else ''}: nothing to do "
            "(delete it to prepare it again)"
        )
        return target
    identity = dataset.identity | {
        "source": dataset.source,
        "storage": list(storage),
        "shard_bytes": shard_bytes,
        "format": _FORMAT,
    }
    workspace = Workspace(target, identity)
    try:
        if workspace.fate == "restarted":
            print("the inputs or options have changed since the unfinished run: starting again")
        print(f"preparing {target} from {dataset.source} with {counted(workers, 'process')}")
        with Pool(workers) as pool:
            splits = dataset.scan(pool)
            tasks = {
                split: shards.plan_shards(found.images, name, split, shard_bytes)
                for split, found in splits.items()
            }
            _write_missing(workspace, pool, splits, tasks, storage)
        written = _publish(dataset, storage, workspace, tasks)
    finally:
        workspace.close()
    for split, found in splits.items():
        count = len(found.images)
        print(f"{split}: {counted(count, 'image')} in {counted(len(tasks[split]), 'shard')}")
        if count != dataset.expected.get(split, count):
            print(f"warning: ImageNet's {split} has {dataset.expected[split]:,}")
    _print_changes(written, storage)
    print(f"{target} is finished; train with --config.data.path={target}")
    return target


def _write_missing(
    workspace: Workspace,
    pool: Pool,
    splits: dict[str, SplitInput],
    tasks: dict[str, list[Task]],
    storage: Storage,
) -> None:
    everything = [task for some in tasks.values() for task in some]
    missing = [task for task in everything if not workspace.find(task.file)]

    def size(task: Task) -> int:
        return int(splits[task.split].images.sizes[task.start : task.stop].sum())

    total, left = sum(map(size, everything)), sum(map(size, missing))
    if len(missing) < len(everything):
        done = len(everything) - len(missing)
        print(f"{done} of {counted(len(everything), 'shard')} are done already")
    free = shutil.disk_usage(workspace.path).free
    if not storage.resize and left > free:
        raise UserError(
            f"--out: {workspace.path} needs {format_bytes(left)}, but {format_bytes(free)} are free"
        )

    def calls() -> Iterator[tuple[Task, tuple[Any, ...]]]:
        for task in missing:
            found = splits[task.split]
            images = [found.images[i] for i in range(task.start, task.stop)]
            yield task, (workspace.path / task.file, found.root, images, storage)

    with ProgressReporter("writing", total, already=total - left, unit="bytes") as reporter:
        for task, shard in pool.run(shards.write_shard, calls()):
            workspace.add(task.file, shard)
            reporter.advance(size(task))


def _publish(
    dataset: Dataset, storage: Storage, workspace: Workspace, tasks: dict[str, list[Task]]
) -> list[WrittenShard]:
    """Write the metadata and rename the directory; return all shards."""
    name = dataset.stored_name(storage)
    description = dataset.description
    if storage.resize:
        description += (
            f" Larger images were shrunk to {storage.resize} pixels on their shorter side "
            f"(Lanczos) and stored as JPEG of quality {storage.quality}."
        )
    infos, everything = [], []
    for split, some in tasks.items():
        written = [shard for task in some if (shard := workspace.find(task.file))]
        assert len(written) == len(some)  # each was just written or checked
        everything += written
        infos.append(
            tfds_format.split_info(
                workspace.path,
                name,
                split,
                shard_lengths=[shard.records for shard in written],
                num_bytes=sum(shard.num_bytes for shard in written),
            )
        )
    features = tfds_format.image_features(dataset.class_names, storage.encoding)
    tfds_format.write_metadata(
        workspace.path, features, infos, version=dataset.version, description=description
    )
    workspace.publish([task.file for some in tasks.values() for task in some])
    return everything


def _print_changes(written: list[WrittenShard], storage: Storage) -> None:
    if storage.resize:
        resized = sum(shard.resized for shard in written)
        print(f"{counted(resized, 'image')} resized to {storage.resize}")
    repaired = sorted(name for shard in written for name in shard.repaired)
    names = ", ".join(repaired[:30]) + (", ..." if len(repaired) > 30 else "")
    print(f"{counted(len(repaired), 'image')} repaired{': ' if repaired else ''}{names}")
