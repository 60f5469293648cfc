"""The ways in which people keep image data sets on disk, and how to recognize each.

A recognizer takes a path and returns a `Layout`, or None where the path holds something else. A
layout lists a split only when it is asked to.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from imagenet_jax.data.stored_image import StoredImage
from imagenet_jax.data.text_file import read_lines
from imagenet_jax.data.walk import (
    HIDDEN,
    Note,
    Walk,
    is_folder,
    is_hidden,
    is_image,
    is_utf8,
    list_folder,
    walk,
)
from imagenet_jax.errors import UserError, why_unreadable

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
ALL = "all"  # the split of class folders that are in no split
_CLS_LOC = ("ILSVRC", "Data", "CLS-LOC")
_KAGGLE = "Kaggle's ILSVRC/Data/CLS-LOC"
_SOLUTION = "LOC_val_solution.csv"  # Kaggle's validation labels
_ANNOTATIONS = "val_annotations.txt"  # those of tiny-imagenet-200


@dataclass
class Split:
    """The images of a split, in order.

    Attributes:
      root: the folder that names of images are below.
      class_names: label -> name.
      left_out: entries of `root` that are not images of the split.
      problems: what keeps the split from being used.
      name: for messages; empty: that of `root`.
    """

    root: Path
    class_names: tuple[str, ...]
    images: list[StoredImage]
    left_out: list[Note] = field(default_factory=list)
    problems: list[Note] = field(default_factory=list)
    name: str = ""


@dataclass
class Layout:
    """A data set on disk.

    Attributes:
      name: of the kind of layout.
      path: of the data set.
      splits: "train", "validation", "test" or `ALL` -> how to list it.
      class_folders: split -> the folder, of splits that have a folder for each class.
      left_out: what is in `path` and in no split.
    """

    name: str
    path: Path
    splits: dict[str, Callable[[], Split]]
    class_folders: dict[str, Path] = field(default_factory=dict)
    left_out: list[Note] = field(default_factory=list)

    def find(self, split: str) -> Callable[[], Split] | None:
        """How to list a split by its name, by another of its names, or by its folder's."""
        if split in self.splits:
            return self.splits[split]
        if _has_classes(self.path / split):
            return partial(list_classes, self.path / split)
        if ALL in self.splits:
            return self.splits[ALL] if split == "validation" else None
        return self.splits.get(split_name(split) or "")


def split_name(name: str) -> str | None:
    """The split that a folder or file name means, whatever its case: "Val" is "validation"."""
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


def list_classes(root: Path) -> Split:
    """The images of `root/CLASS/` and below; classes are sorted, as torchvision sorts them."""
    split = Split(root, (), [])
    names: list[str] = []
    for entry in list_folder(root):
        try:
            if is_hidden(entry.name) or not is_folder(entry):
                why = HIDDEN if is_hidden(entry.name) else "in no class"
                split.left_out.append(Note(entry.name, why))
                continue
            found = walk(root / entry.name)
            if entry.name == "images" and not (found.files or found.problems):
                split.left_out.append(Note(entry.name, "an empty folder, not a class"))
            else:
                _add(split, found, entry.name, lambda _: len(names))
                names.append(os.fsencode(entry.name).decode("utf-8", "backslashreplace"))
        except OSError as e:
            split.problems.append(Note(entry.name, why_unreadable(root / entry.name, e)))
    split.class_names = tuple(names)
    return split


def _add(split: Split, found: Walk, folder: str, label: Callable[[str], int | None]) -> None:
    """Add what was found in a folder of the split; `label` returns None to leave an image out."""

    def name_of(name: str) -> str:
        return "/".join(part for part in (folder, name) if part)

    split.left_out += [Note(name_of(name), why) for name, why in found.left_out]
    split.problems += [Note(name_of(name), why) for name, why in found.problems]
    for file in found.files:
        name, its_label = name_of(file.name), label(file.name)
        if not is_utf8(name):
            split.problems.append(Note(name, "is not UTF-8; rename it"))
        elif its_label is not None:
            split.images.append(StoredImage(name, its_label, file.size, file.mtime_ns))


def cls_loc(path: Path) -> Layout | None:
    """ILSVRC/Data/CLS-LOC as Kaggle has it, from any folder of that path."""
    for parts in (_CLS_LOC, _CLS_LOC[1:], _CLS_LOC[2:]):
        layout = split_folders(path.joinpath(*parts)) if path.joinpath(*parts).is_dir() else None
        if layout:
            left_out = [(path.joinpath(*parts), layout.left_out)]
            for depth, part in enumerate(parts):
                folder = path.joinpath(*parts[:depth])
                left_out.append((folder, _others(folder, {part, _SOLUTION})))
            layout.name, layout.path = _KAGGLE, path
            layout.left_out = [
                Note(str((folder / name).relative_to(path)), why)
                for folder, some in left_out
                for name, why in some
            ]
            return layout
    return None


def split_folders(path: Path) -> Layout | None:
    """train/, validation/ and test/, by any of their names, with class folders or a label file."""
    layout = Layout("folders of splits", path, {})
    folders = _folders(path)
    # As written in SPLITS first, then in any other case.
    known = [name for names in SPLITS.values() for name in names if name in folders]
    known += [name for name in folders if split_name(name) and name not in known]
    for name in known:
        split, folder = split_name(name) or "", path / name
        if split in layout.splits:
            layout.left_out.append(Note(name, f"another folder of the {split} split is read"))
        elif any(entry.name == _ANNOTATIONS for entry in list_folder(folder)) and not (
            # Reorganized into class folders, with the file left behind.
            _has_classes(folder)
            and not ((folder / "images").is_dir() and _holds_image(folder / "images", 0))
        ):
            layout.name, layout.splits[split] = "tiny-imagenet", partial(_annotated, folder)
        elif _has_classes(folder):
            layout.splits[split] = partial(list_classes, folder)
            layout.class_folders[split] = folder
        elif split == "validation" and (csv := _solution(folder)):
            layout.name, layout.splits[split] = _KAGGLE, partial(_solved, folder, csv)
        else:
            layout.left_out.append(Note(name, _no_labels(folder, split)))
    layout.left_out += _others(path, {*known, _SOLUTION})
    # A class may be called "train", but hardly every class after a split.
    return layout if layout.splits or (known and len(known) == len(folders)) else None


def class_folders(path: Path) -> Layout | None:
    """CLASS/ without splits: for a hold-out, or all for evaluation (ImageNetV2, for example)."""
    if not any(_holds_image(path / name, 1) for name in _folders(path)):
        return None
    return Layout("class folders without splits", path, {ALL: partial(list_classes, path)})


def _has_classes(root: Path) -> bool:
    """Whether folders are in `root`; "images" by itself is where data sets put unlabeled ones."""
    return root.is_dir() and _folders(root) not in ([], ["images"])


def _holds_image(folder: Path, depth: int) -> bool:
    """Whether an image is in `folder` or up to `depth` folders below; True if unreadable."""
    try:
        names = [entry.name for entry in list_folder(folder) if not is_hidden(entry.name)]
        return any(map(is_image, names)) or (
            depth > 0 and any(_holds_image(folder / name, depth - 1) for name in _folders(folder))
        )
    except OSError:
        return True


def _folders(path: Path) -> list[str]:
    """The folders in `path` that are not hidden; OSError for a split that is a link to nothing."""
    found = []
    for entry in list_folder(path):
        try:
            if not is_hidden(entry.name) and is_folder(entry):
                found.append(entry.name)
        except OSError:
            if split_name(entry.name):
                raise
    return found


def _others(path: Path, read: set[str]) -> list[Note]:
    """What is in `path` beside the names that are read."""
    return [
        Note(e.name, HIDDEN if is_hidden(e.name) else "in no split")
        for e in list_folder(path)
        if e.name not in read
    ]


def _no_labels(folder: Path, split: str) -> str:
    """Why a folder of a split is not read."""
    wanted = "class folders"
    if split == "validation":
        wanted = f"class folders, {_ANNOTATIONS} or {_SOLUTION} (which Kaggle puts beside ILSVRC/)"
    images = any(is_image(e.name) or e.name == "images" for e in list_folder(folder))
    return f"{'images without labels' if images else 'no images'}: it has no {wanted}"


def _solution(folder: Path) -> Path | None:
    """Kaggle's CSV for the flat folder `folder`: in it, or in one of the four folders above."""
    for start in (folder.absolute(), folder.resolve()):
        for place in (start, *list(start.parents)[:4]):
            if (place / _SOLUTION).is_file():
                return place / _SOLUTION
    return None


def _solved(folder: Path, csv: Path) -> Split:
    """`folder/NAME.JPEG`, whose classes are in lines "NAME,CLASS 10 20 300 400 CLASS ..."."""
    rows = [line.split(",", 1) for line in read_lines(csv)]
    classes = {row[0].strip(): row[1].split()[0] for row in rows[1:] if row[1:] and row[1].strip()}
    return _labeled(folder, "", classes, csv)


def _annotated(folder: Path) -> Split:
    """`folder/images/FILE`, whose classes are in lines "FILE <tab> CLASS <tab> box"."""
    path = folder / _ANNOTATIONS
    rows = [line.split() for line in read_lines(path)]
    return _labeled(folder, "images/", {row[0]: row[1] for row in rows if len(row) > 1}, path)


def _labeled(folder: Path, prefix: str, classes: dict[str, str], path: Path) -> Split:
    """Files of `folder` whose class is in the file `path`, by name with or without the suffix.

    Sorted by class and then by name, which is their order in class folders.
    """
    if not classes:
        raise UserError(f"{path} has no line with an image and its class")
    names = tuple(sorted(set(classes.values())))
    labels = {name: label for label, name in enumerate(names)}
    split = Split(folder, names, [])
    missing = set(classes)

    def label(name: str) -> int | None:
        image = name.removeprefix(prefix)
        key = image if image in classes else image.rpartition(".")[0]
        missing.discard(key)
        if key not in classes:
            split.problems.append(Note(name, f"is not in {path.name}"))
            return None
        return labels[classes[key]]

    _add(split, walk(folder), "", label)
    split.left_out = [note for note in split.left_out if note.name != path.name]
    split.problems += [Note(name, f"is in {path.name}, but not there") for name in sorted(missing)]
    split.images.sort(key=lambda image: (image.label, image.name))
    return split
