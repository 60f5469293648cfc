"""Finds images on disk, in folders and shards, and provides a split of them as a source."""

import os
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagenet_jax.data import Record
from imagenet_jax.data.shard_files import read_parquet_image
from imagenet_jax.errors import UserError, expand_user, why_unreadable
from imagenet_jax.files import hash_texts

IMAGE_SUFFIXES = (
    ".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
)  # fmt: skip
HIDDEN = "hidden, or created by the system"
_SYSTEM = {"@eaDir", "#recycle", "__MACOSX", "$RECYCLE.BIN", "lost+found"}
_STANDARD_INPUT = "-"


class StoredImage(NamedTuple):
    """An image on disk that has not been read.

    Attributes:
      name: path relative to the folder, or name within the shard.
      label: index of its class, -1 if unknown.
      size: bytes; approximate in parquet files.
      mtime_ns: modification time of its file; 0 in shards.
      shard: path of the shard relative to the folder; "" for an image file. With an offset and no
        shard, the "folder" is itself the archive.
      offset: in bytes; -1 for an image file; for parquet files, see `shard_files`.
    """

    name: str
    label: int
    size: int
    mtime_ns: int = 0
    shard: str = ""
    offset: int = -1

    @property
    def id(self) -> str:
        """A name that is unique in the split."""
        return f"{self.shard}/{self.name}" if self.shard else self.name


def read_image(root: Path, image: StoredImage) -> bytes:
    """Return the encoded bytes of an image below `root`. Raises UserError, naming a bad file."""
    path = root / (image.shard if image.offset >= 0 else image.name)
    try:
        if image.offset < 0:
            return path.read_bytes()
        if path.suffix == ".parquet":
            return read_parquet_image(path, image.offset)
        with path.open("rb") as file:
            file.seek(image.offset)
            encoded = file.read(image.size)
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}") from e
    if len(encoded) != image.size:
        raise UserError(f"{path} is cut off in {image.name}: download or write it again")
    return encoded


class ImageTable:
    """Stored images as arrays, without mtime_ns. They take a tenth of the memory of a list.

    Attributes:
      labels: i32[N].
      sizes: i64[N], bytes.
    """

    def __init__(self, images: Sequence[StoredImage]):
        self.labels = np.array([image.label for image in images], np.int32)
        self.sizes = np.array([image.size for image in images], np.int64)
        self._names = np.array([image.name.encode() for image in images])
        self._offsets = np.array([image.offset for image in images], np.int64)
        self._shards = sorted({image.shard for image in images})
        numbers = {shard: number for number, shard in enumerate(self._shards)}
        self._shard = np.array([numbers[image.shard] for image in images], np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> StoredImage:
        name, shard = self._names[index].decode(), self._shards[self._shard[index]]
        label, size, offset = self.labels[index], self.sizes[index], self._offsets[index]
        return StoredImage(name, int(label), int(size), shard=shard, offset=int(offset))


class Note(NamedTuple):
    """A remark about a file or folder, which `name` gives as a path."""

    name: str
    reason: str


@dataclass
class Split:
    """The images of a split, in order.

    Attributes:
      root: the folder that image names are relative to.
      class_names: label -> name.
      left_out: entries of `root` that are not images of the split.
      problems: reasons why the split cannot be used.
      name: for messages; "": the path of `root`.
    """

    root: Path
    class_names: tuple[str, ...] = ()
    images: list[StoredImage] = field(default_factory=list)
    left_out: list[Note] = field(default_factory=list)
    problems: list[Note] = field(default_factory=list)
    name: str = ""

    def add(self, found: "Split", folder: str, label: Callable[[str], int | None]) -> None:
        """Add what was found in `folder` of the split. `label(name)` is None to omit an image."""

        def join(name: str) -> str:
            return "/".join(part for part in (folder, name) if part)

        self.left_out += [Note(join(name), why) for name, why in found.left_out]
        self.problems += [Note(join(name), why) for name, why in found.problems]
        for image in found.images:
            name, its_label = join(image.name), label(image.name)
            if not is_utf8(name):
                self.problems.append(Note(name, "is not UTF-8; rename it"))
            elif its_label is not None:
                self.images.append(image._replace(name=name, label=its_label))


class SplitSource:
    """A source of the images of a split, or of some of them, in the order of the split."""

    def __init__(self, split: Split, images: Sequence[StoredImage] | None = None):
        images = split.images if images is None else images
        self.name, self.class_names = split.name or str(split.root), split.class_names
        self.fingerprint = hash_texts(*(_identity(image, split) for image in images))
        self._root, self._images = split.root, ImageTable(images)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Record:
        image = self._images[index]
        name = image.id if image.shard else f"{self._root.name}/{image.name}"
        return {"image": read_image(self._root, image), "label": image.label, "id": name}

    def labels(self) -> np.ndarray:
        return self._images.labels


def _identity(image: StoredImage, split: Split) -> str:
    """Return the image's part of the fingerprint, with the class unless the folder names it."""
    known = 0 <= image.label < len(split.class_names)  # the doctor reports any other label
    name = split.class_names[image.label] if known else str(image.label)
    implied = not image.shard and image.name.startswith(f"{name}/")
    return f"{image.name} {image.size}" + ("" if implied else f" {name}")


def walk(root: Path) -> Split:
    """Find the images below `root`, without labels.

    They are sorted by folder and then by name, as in torchvision's ImageFolder. Links are followed,
    except links to a folder that contains them.
    """
    done = Split(root)
    found: list[tuple[str, StoredImage]] = []
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while waiting:
        folder, parents = waiting.pop()
        try:
            status = (root / folder).stat()
            entries = list_folder(root / folder)
        except OSError as e:
            done.problems.append(Note(folder, why_unreadable(root / folder, e)))
            continue
        here = (status.st_dev, status.st_ino)
        if here in parents:
            done.left_out.append(Note(folder, "a link to a folder that contains it"))
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if is_hidden(entry.name):
                    done.left_out.append(Note(name, HIDDEN))
                elif is_folder(entry):
                    waiting.append((name, (*parents, here)))
                elif not is_image(entry.name):
                    done.left_out.append(Note(name, "no image suffix"))
                else:
                    status = entry.stat()
                    image = StoredImage(name, -1, status.st_size, status.st_mtime_ns)
                    found.append((folder, image))
            except OSError as e:
                done.problems.append(Note(name, why_unreadable(Path(entry), e)))
    done.images = [image for _, image in sorted(found)]
    done.left_out.sort()
    done.problems.sort()
    return done


def list_classes(root: Path) -> Split:
    """List the images in `root/CLASS/` and below, with classes sorted as in torchvision."""
    split = Split(root)
    names: list[str] = []
    for entry in list_folder(root):
        try:
            if is_hidden(entry.name) or not is_folder(entry):
                why = HIDDEN if is_hidden(entry.name) else "in no class"
                split.left_out.append(Note(entry.name, why))
                continue
            found = walk(root / entry.name)
            if entry.name == "images" and not (found.images or found.problems):
                split.left_out.append(Note(entry.name, "an empty folder, not a class"))
            else:
                split.add(found, entry.name, lambda _: len(names))
                names.append(os.fsencode(entry.name).decode("utf-8", "backslashreplace"))
        except OSError as e:
            split.problems.append(Note(entry.name, why_unreadable(root / entry.name, e)))
    split.class_names = tuple(names)
    return split


def list_folder(folder: Path) -> list["os.DirEntry[str]"]:
    """Return the entries of a folder, sorted by name."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a folder or a link to one. Raises OSError for a broken link."""
    return stat.S_ISDIR(entry.stat().st_mode) if entry.is_symlink() else entry.is_dir()


def is_image(name: str) -> bool:
    """Return whether a file name has the suffix of an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden or created by the system, so never a class."""
    return name.startswith(".") or name in _SYSTEM


def is_utf8(name: str) -> bool:
    """Return whether `name`, as the operating system gave it, is UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def require_utf8(path: Path) -> None:
    """Raise UserError if `path` is not UTF-8, which records and result files require."""
    if not is_utf8(str(path)):
        raise UserError(f"the name {os.fsencode(path)!r} is not UTF-8; rename it")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 text file, with or without a byte-order mark.

    Raises UserError if it cannot be read or is not UTF-8.
    """
    try:
        return path.read_text("utf-8-sig").splitlines()
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not text in UTF-8 ({e}); save it as UTF-8") from e


class LooseImage(NamedTuple):
    """An image outside a data set; its name is a path, or "-" for standard input."""

    name: str

    def read(self) -> bytes:
        """Return the encoded bytes. Raises UserError if the image cannot be read or is empty."""
        try:
            stdin = self.name == _STANDARD_INPUT
            encoded = sys.stdin.buffer.read() if stdin else expand_user(self.name).read_bytes()
        except OSError as e:
            raise UserError(f"image {self.name} cannot be read: {e.strerror}") from e
        if not encoded:
            raise UserError(f"image {self.name} is empty")
        return encoded


def find_images(names: Iterable[str]) -> tuple[list[LooseImage], list[str]]:
    """Return the images that `names` refer to, in order, and error messages for the rest.

    A folder refers to all files below it with the suffix of an image, sorted by path. Links are
    followed. Any other name is assumed to be an image.
    """
    images: list[LooseImage] = []
    problems: list[str] = []
    for name in names:
        path = expand_user(name)
        if name == _STANDARD_INPUT or not path.is_dir():
            images.append(LooseImage(name))
            continue
        found = walk(path)
        problems += [f"{path / name} {why}" for name, why in found.problems]
        if not found.images:
            problems.append(f"folder {name} has no images ({' '.join(IMAGE_SUFFIXES)})")
        images += map(LooseImage, sorted(str(path / image.name) for image in found.images))
    return images, problems
