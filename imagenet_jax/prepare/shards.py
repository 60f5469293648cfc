"""One shard: read its images, repair or resize them, write the records."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagenet_jax.data.decode import UndecodableImage
from imagenet_jax.data.stored_image import StoredImage
from imagenet_jax.data.tfds_format import WRITER_OPTIONS, Record, serialize
from imagenet_jax.errors import UserError, writing
from imagenet_jax.files import write_atomically
from imagenet_jax.prepare import index
from imagenet_jax.prepare.images import Storage, Stored, to_store


@dataclass(frozen=True)
class Task:
    """A shard to write: the file, and images `start` to `stop` of a split."""

    file: str
    split: str
    start: int
    stop: int


@dataclass
class Done:
    """A written shard; sizes in bytes, of the records and of the file."""

    records: int
    num_bytes: int
    file_size: int
    repaired: list[str] = field(default_factory=list)
    resized: int = 0

    def as_json(self) -> dict[str, Any]:
        return vars(self)


def plan(split_index: index.Index, name: str, split: str, shard_bytes: float) -> list[Task]:
    """Shards of about `shard_bytes` of input each, at most 1024, named as tfds names them."""
    count = max(1, min(1024, len(split_index), round(int(split_index.sizes.sum()) / shard_bytes)))
    bounds = [round(len(split_index) * i / count) for i in range(count + 1)]
    return [
        Task(f"{name}-{split}.array_record-{i:05d}-of-{count:05d}", split, start, stop)
        for i, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False))
    ]


def write(path: Path, root: Path, entries: list[StoredImage], storage: Storage) -> Done:
    """Write the shard `path`; it appears only once it is complete.

    Takes memory for the shard's input. Raises UserError with the name of an image that cannot be
    decoded or read.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    done = Done(0, 0, 0)
    files = index.read(root, entries)

    def write_records(part: Path) -> None:
        writer = ArrayRecordWriter(str(part), WRITER_OPTIONS)
        try:
            for entry, encoded in zip(entries, files, strict=True):
                stored = _to_store(root, entry, encoded, storage)
                record: Record = {"image": stored.encoded, "label": entry.label, "id": entry.id}
                example = serialize(record)
                writer.write(example)
                done.records, done.num_bytes = done.records + 1, done.num_bytes + len(example)
                done.resized += stored.resized
                if stored.repaired:
                    done.repaired.append(entry.name)
        finally:
            writer.close()
        done.file_size = part.stat().st_size

    with writing(path):
        write_atomically(path, write_records)
    return done


def _to_store(root: Path, entry: StoredImage, encoded: bytes, storage: Storage) -> Stored:
    try:
        return to_store(encoded, storage)
    except UndecodableImage as e:
        raise UserError(f"{entry.name} in {root} cannot be decoded: {e}") from e
    except (OSError, ValueError) as e:
        # By Pillow's encoder, for example for a side of 70,000 pixels.
        name = f"{entry.name} in {root}"
        raise UserError(f"{name} cannot be stored as {storage.encoding}: {e}") from e
