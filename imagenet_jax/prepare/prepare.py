"""Prepares a data set: plans the shards, writes the missing ones, and publishes the directory."""

import contextlib
import fcntl
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from imagenet_jax.data import tfds_format
from imagenet_jax.data.workers import Pool
from imagenet_jax.errors import UserError, writing
from imagenet_jax.files import dump_json, parse_json, read_json, write_json
from imagenet_jax.formatting import counted, format_bytes
from imagenet_jax.prepare import shards
from imagenet_jax.prepare.shards import SplitInput, Storage, Task, WrittenShard
from imagenet_jax.progress import ProgressReporter

_FORMAT = 3  # increase it if the stored content changes, to discard unfinished work
_MANIFEST = "prepared.json"  # stays in the finished directory and says where its records came from
_LOCK = "lock"


@dataclass(frozen=True)
class Dataset:
    """A data set to prepare.

    Attributes:
      name: name of the tfds data set, without the suffix for resizing.
      version: version of the tfds data set.
      class_names: label -> name.
      description: text for dataset_info.json.
      source: where it comes from, for messages.
      identity: a JSON value that changes if an input changes.
      encoding: how images are stored, "jpeg" or "png".
      scan: returns the images of every split. It may use the workers.
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


def prepare(
    dataset: Dataset, out: Path, storage: Storage, *, workers: int, shard_bytes: float
) -> None:
    """Write OUT/NAME/VERSION, continuing where an earlier run stopped.

    The files do not depend on `workers`. `shard_bytes` is the size of the input of a shard. Raises
    UserError for bad input; finished shards are kept for the next run.
    """
    # The name distinguishes resized images from originals.
    name = dataset.name + (f"_{storage.resize}q{storage.quality}" if storage.resize else "")
    target = out / name / dataset.version
    if target.exists():
        source = _read_manifest(target)["inputs"].get("source")
        print(
            f"{target} is finished{f', from {source}' if source else ''}: nothing to do "
            "(delete it to prepare it again)"
        )
        return
    identity = dataset.identity | {
        "source": dataset.source,
        "storage": list(storage),
        "shard_bytes": shard_bytes,
        "format": _FORMAT,
    }
    with contextlib.closing(Workspace(target, identity)) as workspace:
        print(f"preparing {target} from {dataset.source} with {counted(workers, 'process')}")
        with Pool(workers) as pool:
            splits = dataset.scan(pool)
            tasks = [
                task
                for split, found in splits.items()
                for task in shards.plan_shards(found.images, name, split, shard_bytes)
            ]
            written = _write_missing(workspace, pool, splits, tasks, storage)
        _write_metadata(dataset, storage, workspace.path, tasks, written)
        workspace.publish(written)
    for split, found in splits.items():
        count, files = len(found.images), sum(task.split == split for task in tasks)
        print(f"{split}: {counted(count, 'image')} in {counted(files, 'shard')}")
        if count != dataset.expected.get(split, count):
            print(f"warning: ImageNet's {split} has {dataset.expected[split]:,}")
    if storage.resize:
        resized = sum(shard.resized for shard in written.values())
        print(f"{counted(resized, 'image')} resized to {storage.resize}")
    repaired = sorted(image for shard in written.values() for image in shard.repaired)
    names = ", ".join(repaired[:30]) + (", ..." if len(repaired) > 30 else "")
    print(f"{counted(len(repaired), 'image')} repaired{': ' if repaired else ''}{names}")
    print(f"{target} is finished; train with --config.data.path={target}")


def _write_missing(
    workspace: "Workspace",
    pool: Pool,
    splits: dict[str, SplitInput],
    tasks: list[Task],
    storage: Storage,
) -> dict[str, WrittenShard]:
    """Write the shards that no earlier run has finished. Return {file name: shard} of all."""
    written = {task.file: shard for task in tasks if (shard := workspace.find(task.file))}
    missing = [task for task in tasks if task.file not in written]
    total, left = (sum(task.size for task in some) for some in (tasks, missing))
    if written:
        print(f"{len(written)} of {counted(len(tasks), 'shard')} are done already")
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
            written[task.file] = shard
            reporter.advance(task.size)
    return written


def _write_metadata(
    dataset: Dataset,
    storage: Storage,
    directory: Path,
    tasks: list[Task],
    written: dict[str, WrittenShard],
) -> None:
    description = dataset.description
    if storage.resize:
        description += (
            f" Larger images were shrunk to {storage.resize} pixels on their shorter side "
            f"(Lanczos) and stored as JPEG of quality {storage.quality}."
        )
    splits = {}
    for split in dict.fromkeys(task.split for task in tasks):
        own = [written[task.file] for task in tasks if task.split == split]
        size = sum(shard.num_bytes for shard in own)
        splits[split] = ([shard.records for shard in own], size)
    tfds_format.write_metadata(
        directory, dataset.version, description, splits, dataset.class_names, storage.encoding
    )


class Workspace:
    """A hidden directory beside `target` with the finished shards, which survive a kill.

    Attributes:
      path: the directory. A manifest in it lists the finished shards.
    """

    def __init__(self, target: Path, identity: dict[str, Any]):
        """Open or create the directory. The shards depend on `identity`, a JSON value.

        Raises UserError if another process uses it.
        """
        self.path, self._target = target.with_name(f".{target.name}.part"), target
        with writing(f"--out: {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock: BinaryIO = (self.path / _LOCK).open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            self._lock.close()
            raise UserError(f"another process is preparing {target}; wait for it to end") from e
        identity = parse_json(dump_json(identity))  # as it will be read back
        self._manifest = _read_manifest(self.path)
        before = self._manifest["inputs"]
        if before != identity:
            if before:
                print("the inputs or options have changed since the unfinished run: starting again")
            self._remove(lambda name: True)
            self._manifest = {"inputs": identity, "shards": {}}
        self._remove(lambda name: name.startswith("."))  # unfinished files of a killed run

    def find(self, file: str) -> WrittenShard | None:
        """Return the shard `file` if it is finished and its size is right, else None."""
        entry = self._manifest["shards"].get(file)
        path = self.path / file
        intact = entry and path.is_file() and path.stat().st_size == entry["file_size"]
        return WrittenShard(**entry) if intact else None

    def add(self, file: str, shard: WrittenShard) -> None:
        """Record that the shard `file` is finished, so that a kill does not lose it."""
        self._manifest["shards"][file] = vars(shard)
        write_json(self.path / _MANIFEST, self._manifest, indent=1)

    def publish(self, files: Collection[str]) -> None:
        """Rename the directory to the target. Keep only `files`, the manifest and tfds's files."""
        keep = {*files, _MANIFEST, "dataset_info.json", "features.json"}
        self._remove(lambda name: name not in keep and not name.endswith(".labels.txt"))
        (self.path / _LOCK).unlink()
        self.path.rename(self._target)

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def _remove(self, unwanted: Callable[[str], bool]) -> None:
        for entry in self.path.iterdir():
            if entry.name != _LOCK and unwanted(entry.name):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _read_manifest(directory: Path) -> dict[str, Any]:
    """Return {"inputs": what the shards depend on, "shards": finished shards}, empty if missing."""
    try:
        manifest = read_json(directory / _MANIFEST)
        return {"inputs": dict(manifest["inputs"]), "shards": dict(manifest["shards"])}
    except (OSError, ValueError, LookupError, TypeError):
        return {"inputs": {}, "shards": {}}
