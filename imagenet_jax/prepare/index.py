"""Where each image of a split lies: in an archive at an offset, or in a file of its own."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imagenet_jax.data.stored_image import StoredImage, read_image
from imagenet_jax.errors import UserError


@dataclass(frozen=True)
class Index:
    """The images of a split in the order of their records.

    `root` is the archive that the offsets are in, or the folder that names and shards are below.
    Arrays, because a million tuples take ten times the memory.
    """

    root: Path
    names: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    shards: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def entries(self, start: int, stop: int) -> list[StoredImage]:
        """Images `start` to `stop`."""
        rows = slice(start, stop)
        return [
            StoredImage(name.decode(), label, size, shard=shard.decode(), offset=offset)
            for name, label, size, shard, offset in zip(
                self.names[rows].tolist(),
                self.labels[rows].tolist(),
                self.sizes[rows].tolist(),
                self.shards[rows].tolist(),
                self.offsets[rows].tolist(),
                strict=True,
            )
        ]


def build(root: Path, split: str, images: Iterable[StoredImage]) -> Index:
    """An index in tfds's order: by md5(split + name). Parquet files keep the order that they have.

    Images of tars are then read one by one from all tars, which a hard disk does slowly. In parquet
    files each image would take reading its row group, about a hundred times the bytes.

    The hash mixes the classes over the shards, and as it is the one that tfds shuffles by, record i
    and "train[:99%]" are the same images as in a directory that tfds prepared. Raises UserError for
    a name that is there twice.
    """
    salt = hashlib.md5(split.encode(), usedforsecurity=False)

    def key(image: StoredImage) -> bytes:
        digest = salt.copy()
        digest.update(image.id.encode())
        return digest.digest()

    images = list(images)
    ordered = images if _in_parquet(images) else sorted(images, key=key)
    names = set()
    for image in ordered:
        if image.id in names:
            raise UserError(f"{root} has {image.id} twice; every image needs its own name")
        names.add(image.id)
    return Index(
        root,
        np.array([image.name.encode() for image in ordered]),
        np.array([image.label for image in ordered], np.int32),
        np.array([image.size for image in ordered], np.int64),
        np.array([image.shard.encode() for image in ordered]),
        np.array([image.offset for image in ordered], np.int64),
    )


def _in_parquet(images: list[StoredImage]) -> bool:
    return any(image.shard.endswith(".parquet") for image in images)


def read(root: Path, images: list[StoredImage]) -> list[bytes]:
    """The files of `images`, which are read in the order in which they lie on the disk.

    Raises UserError for one that cannot be read.
    """
    found = [b""] * len(images)
    for i in sorted(range(len(images)), key=lambda i: (images[i].shard, images[i].offset)):
        found[i] = read_image(root, images[i])
    return found
