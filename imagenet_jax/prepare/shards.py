"""Shards of a prepared data set: orders images, encodes each for storage, and writes shards."""

import hashlib
import io
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from imagenet_jax.data import Record
from imagenet_jax.data.decode import decode, resized_size
from imagenet_jax.data.image_files import ImageTable, StoredImage, read_image
from imagenet_jax.data.image_formats import UndecodableImage, is_cmyk
from imagenet_jax.data.tfds_format import WRITER_OPTIONS, serialize
from imagenet_jax.errors import UserError, writing
from imagenet_jax.files import write_atomically

_SIGNATURES = {"jpeg": b"\xff\xd8", "png": b"\x89PNG"}


@dataclass(frozen=True)
class SplitInput:
    """The images of a split, in the order of the records.

    Attributes:
      root: the archive that offsets refer to, or the folder that names and shards are relative to.
      images: the images.
    """

    root: Path
    images: ImageTable


def order_images(root: Path, split: str, images: Iterable[StoredImage]) -> SplitInput:
    """Return the images in tfds's order, which is by md5(split + name).

    This mixes the classes over the shards, and record i and "train[:99%]" are the same images as in
    a directory prepared by tfds. Images in parquet files keep their order, because reading one of
    them reads a whole row group, about a hundred times as many bytes. (Images in tars are read one
    at a time, which is slow on a hard disk.)

    Raises UserError if two images have the same name.
    """
    salt = hashlib.md5(split.encode(), usedforsecurity=False)

    def key(image: StoredImage) -> bytes:
        digest = salt.copy()
        digest.update(image.id.encode())
        return digest.digest()

    ordered = list(images)
    if not any(image.shard.endswith(".parquet") for image in ordered):
        ordered.sort(key=key)
    names = set()
    for image in ordered:
        if image.id in names:
            raise UserError(f"{root} has {image.id} twice; every image needs its own name")
        names.add(image.id)
    return SplitInput(root, ImageTable(ordered))


@dataclass(frozen=True)
class Task:
    """A shard to write: images `start` to `stop` - 1 of a split, `size` bytes in total."""

    file: str
    split: str
    start: int
    stop: int
    size: int


def plan_shards(images: ImageTable, name: str, split: str, shard_bytes: float) -> list[Task]:
    """Return shards of about `shard_bytes` of input each, at most 1024, with tfds's names."""
    count = max(1, min(1024, len(images), round(int(images.sizes.sum()) / shard_bytes)))
    bounds = [round(len(images) * i / count) for i in range(count + 1)]
    tasks = []
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        file = f"{name}-{split}.array_record-{i:05d}-of-{count:05d}"
        tasks.append(Task(file, split, start, stop, int(images.sizes[start:stop].sum())))
    return tasks


class Storage(NamedTuple):
    """How images are stored.

    Attributes:
      encoding: "jpeg" or "png"; files of another format are encoded again.
      resize: shorter side in pixels of larger images, which become JPEGs; None: do not resize.
      quality: JPEG quality of resized images, 1 to 100.
    """

    encoding: str = "jpeg"
    resize: int | None = None
    quality: int = 90


class Stored(NamedTuple):
    """The bytes to store for an image, and whether it was repaired or resized (never both)."""

    encoded: bytes
    repaired: bool = False
    resized: bool = False


def to_store(encoded: bytes, storage: Storage) -> Stored:
    """Return the bytes to store for an image.

    Every file is decoded as in training, to make sure that training can read it. CMYK JPEGs and
    files in a format other than `storage.encoding` are repaired: their RGB pixels are encoded
    again, as PNGs or as JPEGs of quality 100 with full-resolution color. Raises UndecodableImage.
    """
    pixels = decode(encoded)
    height, width = pixels.shape[:2]
    if storage.resize and storage.resize < min(height, width):
        # Round as in evaluation, so that resizing to the same side again changes nothing.
        tall, wide = resized_size(height, width, storage.resize)
        image = Image.fromarray(pixels).resize((wide, tall), Image.Resampling.LANCZOS)
        return Stored(_encode(image, "jpeg", storage.quality, "4:2:0"), resized=True)
    if not encoded.startswith(_SIGNATURES[storage.encoding]) or is_cmyk(encoded):
        image = Image.fromarray(pixels)
        return Stored(_encode(image, storage.encoding, 100, "4:4:4"), repaired=True)
    return Stored(encoded)


def _encode(image: Image.Image, encoding: str, quality: int, subsampling: str) -> bytes:
    file = io.BytesIO()
    if encoding == "png":
        image.save(file, "PNG")
    else:
        image.save(file, "JPEG", quality=quality, subsampling=subsampling)
    return file.getvalue()


@dataclass
class WrittenShard:
    """A written shard.

    Attributes:
      records: number of records.
      num_bytes: size of the records.
      file_size: size of the file.
      repaired: names of the repaired images.
      resized: number of resized images.
    """

    records: int = 0
    num_bytes: int = 0
    file_size: int = 0
    repaired: list[str] = field(default_factory=list)
    resized: int = 0


def write_shard(
    path: Path, root: Path, images: list[StoredImage], storage: Storage
) -> WrittenShard:
    """Write the shard `path`, which appears when it is complete.

    All files of the shard are in memory at once. Raises UserError, naming the image, if an image
    cannot be read, decoded or stored.
    """
    done = WrittenShard()
    in_order_on_disk = sorted(images, key=lambda image: (image.shard, image.offset))
    files = {image.id: read_image(root, image) for image in in_order_on_disk}

    def write_records(part: Path) -> None:
        writer = ArrayRecordWriter(str(part), WRITER_OPTIONS)
        try:
            for image in images:
                try:
                    stored = to_store(files[image.id], storage)
                except UndecodableImage as e:
                    what = f"{image.name} in {root} cannot be decoded"
                    raise UserError(f"{what}: {e}; replace or remove the file") from e
                except (OSError, ValueError) as e:  # from Pillow, for a side of 70,000 pixels
                    what = f"{image.name} in {root} cannot be stored as {storage.encoding}"
                    raise UserError(f"{what}: {e}") from e
                record: Record = {"image": stored.encoded, "label": image.label, "id": image.id}
                example = serialize(record)
                writer.write(example)
                done.records, done.num_bytes = done.records + 1, done.num_bytes + len(example)
                done.resized += stored.resized
                if stored.repaired:
                    done.repaired.append(image.name)
        finally:
            writer.close()
        done.file_size = part.stat().st_size

    with writing(path):
        write_atomically(path, write_records)
    return done
