"""A folder of images: a folder per split and class in it, or classes alone and a hold-out."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imagenet_jax.data.fingerprint import fingerprint_of
from imagenet_jax.data.order import permutation
from imagenet_jax.data.tfds_format import Record
from imagenet_jax.errors import UserError

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_File = tuple[str, int, int]  # path below the root, label, size in bytes


def split_folder(path: Path, split: str) -> Path | None:
    """path/split, or path/val for "validation", if it is there; OSError for a link to nothing."""
    for name in (split, "val") if split == "validation" else (split,):
        folder = path / name
        try:
            if stat.S_ISDIR(folder.stat().st_mode):
                return folder
        except (FileNotFoundError, NotADirectoryError):
            if folder.is_symlink():
                raise
    return None


class FolderSource:
    """Images of `root/CLASS/FILE`; classes and files in sorted order."""

    def __init__(self, root: Path, class_names: tuple[str, ...], files: Sequence[_File]):
        self.name, self.class_names = str(root), class_names
        self.fingerprint = fingerprint_of(*(f"{name} {size}" for name, _, size in files))
        self._root, self._parent = root, root.name
        # Arrays, because a list of a million strings takes ten times the memory.
        self._names = np.array([name.encode() for name, _, _ in files])
        self._labels = np.array([label for _, label, _ in files], np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Record:
        name = self._names[index].decode()
        try:
            image = (self._root / name).read_bytes()
        except OSError as e:
            raise UserError(f"{self._root / name} cannot be read: {e.strerror}") from e
        return {"image": image, "label": int(self._labels[index]), "id": f"{self._parent}/{name}"}

    def labels(self) -> np.ndarray:
        return self._labels


def open_folder(path: Path, split: str) -> FolderSource:
    """The images of `path/split/CLASS/`."""
    root = split_folder(path, split)
    if not root:
        raise UserError(
            f"{path / split} does not exist; it should hold a folder per class. Where {path} "
            "itself does, --config.data.holdout=0.2 keeps a fifth of each class for evaluation"
        )
    return FolderSource(root, *_list(root))


def open_held_out(path: Path, split: str, share: float) -> FolderSource:
    """The images of `path/CLASS/` that are held out, for "validation", or the others, for "train".

    `share` of each class is held out, at least one image: always the same ones, whatever the seed
    of a run, so that runs can be compared.
    """
    if split not in ("train", "validation"):
        raise UserError(f"config.data.holdout makes splits 'train' and 'validation', not {split!r}")
    splits = [name for name in ("train", "val", "validation") if (path / name).is_dir()]
    if splits:
        raise UserError(
            f"{path} has a folder {splits[0]!r}: with splits of its own it needs no "
            "config.data.holdout, set it to 0"
        )
    classes, files = _list(path)
    chosen: list[_File] = []
    for label, name in enumerate(classes):
        mine = [file for file in files if file[1] == label]
        if len(mine) < 2:
            raise UserError(f"{path / name} has one image; config.data.holdout needs at least two")
        held = min(len(mine) - 1, max(1, round(share * len(mine))))
        out = set(permutation(len(mine), seed=0, epoch=label)[:held].tolist())
        chosen += [file for i, file in enumerate(mine) if (i in out) == (split == "validation")]
    return FolderSource(path, classes, chosen)


def _list(root: Path) -> tuple[tuple[str, ...], list[_File]]:
    """(class names, files) of `root/CLASS/`, both sorted."""
    classes = class_folders(root)
    files = [
        (f"{name}/{file}", label, info.st_size)
        for label, name in enumerate(classes)
        for file, info in image_files(root / name)
    ]
    return tuple(classes), files


def class_folders(root: Path) -> list[str]:
    """Return the names of the folders in `root`, sorted.

    Raises UserError if there are none or a name is not UTF-8, OSError for a link to nothing.
    """
    found = sorted(entry.name for entry in os.scandir(root) if stat.S_ISDIR(entry.stat().st_mode))
    if not found:
        raise UserError(f"{root} has no class folders; it should hold CLASS/*.JPEG")
    for name in found:
        require_utf8(root / name)
    return found


def image_files(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Return names and sizes of the images in `folder`, sorted by name; raises as above."""
    found = sorted(
        (entry.name, entry.stat())
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(IMAGE_SUFFIXES)
    )
    if not found:
        raise UserError(f"{folder} has no images ({' '.join(IMAGE_SUFFIXES)})")
    for name, _ in found:
        require_utf8(folder / name)
    return found


def require_utf8(path: Path) -> None:
    """Raise UserError if `path` is not UTF-8, which the records and result files need."""
    if not is_utf8(str(path)):
        raise UserError(f"the name {os.fsencode(path)!r} is not UTF-8; rename it")


def is_utf8(name: str) -> bool:
    """Whether `name`, as the operating system gave it, is UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
