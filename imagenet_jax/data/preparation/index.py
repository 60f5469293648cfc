"""Where each image of a split lies: in an archive at an offset, or in a file of its own."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagenet_jax.errors import UserError


class Entry(NamedTuple):
    """An image before it is read; `offset` is in bytes, -1 for a file of its own."""

    name: str
    label: int
    offset: int
    size: int


@dataclass(frozen=True)
class Index:
    """The images of a split in the order of their records.

    `root` is the archive that the offsets are in, or the folder that the names are below. Arrays,
    because a million tuples take ten times the memory.
    """

    root: Path
    names: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def entries(self, start: int, stop: int) -> list[Entry]:
        """Images `start` to `stop`."""
        rows = slice(start, stop)
        return [
            Entry(name.decode(), label, offset, size)
            for name, label, offset, size in zip(
                self.names[rows].tolist(),
                self.labels[rows].tolist(),
                self.offsets[rows].tolist(),
                self.sizes[rows].tolist(),
                strict=True,
            )
        ]


def build(root: Path, split: str, entries: Iterable[Entry]) -> Index:
    """An index in tfds's order: by md5(split + name).

    The hash mixes the classes over the shards, and as it is the one that tfds shuffles by, record i
    and "train[:99%]" are the same images as in a directory that tfds prepared. Raises UserError for
    a name that is there twice.
    """
    salt = hashlib.md5(split.encode(), usedforsecurity=False)

    def key(entry: Entry) -> bytes:
        digest = salt.copy()
        digest.update(entry.name.encode())
        return digest.digest()

    ordered = sorted(entries, key=key)
    for one, next_one in zip(ordered, ordered[1:], strict=False):
        if one.name == next_one.name:
            raise UserError(f"{root} has {one.name} twice; every image needs its own name")
    return Index(
        root,
        np.array([entry.name.encode() for entry in ordered]),
        np.array([entry.label for entry in ordered], np.int32),
        np.array([entry.offset for entry in ordered], np.int64),
        np.array([entry.size for entry in ordered], np.int64),
    )


def read(root: Path, entries: list[Entry]) -> list[bytes]:
    """The files of `entries`, which are read in the order in which they lie on the disk.

    Raises UserError for one that cannot be read.
    """
    found = [b""] * len(entries)
    order = sorted(range(len(entries)), key=lambda i: entries[i].offset)
    archive = None
    try:
        if any(entry.offset >= 0 for entry in entries):
            archive = root.open("rb")
        for i in order:
            name, _, offset, size = entries[i]
            if archive:
                archive.seek(offset)
                found[i] = archive.read(size)
            else:
                found[i] = (root / name).read_bytes()
            if len(found[i]) != size:
                raise UserError(f"{root}: {name} has changed while it was read; start again")
    except OSError as e:
        raise UserError(f"{e.filename or root} cannot be read: {e.strerror}") from e
    finally:
        if archive:
            archive.close()
    return found
