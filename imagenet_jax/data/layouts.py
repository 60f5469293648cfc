"""Layouts of data sets on disk, and recognition of those in folders of images.

A recognizer takes a path and returns a `Layout`, or None if the path holds something else. A split
is listed only when it is used.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from imagenet_jax.data.image_files import (
    HIDDEN,
    Note,
    StoredImage,
    Walk,
    is_folder,
    is_hidden,
    is_image,
    is_utf8,
    list_folder,
    read_lines,
    walk,
)
from imagenet_jax.errors import UserError, why_unreadable

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
ALL = "all"  # the only split of class folders without splits
_CLS_LOC = ("ILSVRC", "Data", "CLS-LOC")
_KAGGLE = "Kaggle's ILSVRC/Data/CLS-LOC"
_SOLUTION = "LOC_val_solution.csv"  # Kaggle's validation labels
_ANNOTATIONS = "val_annotations.txt"  # validation labels of tiny-imagenet-200


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
      splits: "train", "validation", "test" or `ALL` -> a function that lists it.
      class_folders: split -> its folder, for splits with a folder per class.
      left_out: entries of `path` that are in no split.
    """

    name: str
    path: Path
    splits: dict[str, Callable[[], Split]]
    class_folders: dict[str, Path] = field(default_factory=dict)
    left_out: list[Note] = field(default_factory=list)

    def find(self, split: str) -> Callable[[], Split] | None:
        """Return the function that lists a split, by any of its names or its folder's name."""
        if split in self.splits:
            return self.splits[split]
        if _has_classes(self.path / split):
            return partial(list_classes, self.path / split)
        if ALL in self.splits:
            return self.splits[ALL] if split == "validation" else None
        return self.splits.get(split_name(split) or "")


def split_name(name: str) -> str | None:
    """Return the split that a folder or file name means, in any case: "Val" is "validation"."""
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


def list_classes(root: Path) -> Split:
    """List the images in `root/CLASS/` and below; classes are sorted as torchvision does."""
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

    def join(name: str) -> str:
        return "/".join(part for part in (folder, name) if part)

    split.left_out += [Note(join(name), why) for name, why in found.left_out]
    split.problems += [Note(join(name), why) for name, why in found.problems]
    for file in found.files:
        name, its_label = join(file.name), label(file.name)
        if not is_utf8(name):
            split.problems.append(Note(name, "is not UTF-8; rename it"))
        elif its_label is not None:
            split.images.append(StoredImage(name, its_label, file.size, file.mtime_ns))


def find_cls_loc(path: Path) -> Layout | None:
    """Recognize Kaggle's ILSVRC/Data/CLS-LOC, given any folder of that path."""
    for parts in (_CLS_LOC, _CLS_LOC[1:], _CLS_LOC[2:]):
        inner = path.joinpath(*parts)
        layout = find_split_folders(inner) if inner.is_dir() else None
        if layout:
            left_out = [(inner, layout.left_out)]
            for depth, part in enumerate(parts):
                folder = path.joinpath(*parts[:depth])
                left_out.append((folder, _other_entries(folder, {part, _SOLUTION})))
            layout.name, layout.path = _KAGGLE, path
            layout.left_out = [
                Note(str((folder / name).relative_to(path)), why)
                for folder, some in left_out
                for name, why in some
            ]
            return layout
    return None


def find_split_folders(path: Path) -> Layout | None:
    """Recognize train/, validation/ and test/, by any of their names.

    Each has class folders or a file of labels.
    """
    layout = Layout("folders of splits", path, {})
    folders = _folders(path)
    # Names as in SPLITS come first, then those in another case.
    known = [name for names in SPLITS.values() for name in names if name in folders]
    known += [name for name in folders if split_name(name) and name not in known]
    for name in known:
        split, folder = split_name(name) or "", path / name
        if split in layout.splits:
            layout.left_out.append(Note(name, f"another folder of the {split} split is read"))
        elif any(entry.name == _ANNOTATIONS for entry in list_folder(folder)) and not (
            # Someone has moved the images into class folders and left the file behind.
            _has_classes(folder)
            and not ((folder / "images").is_dir() and _holds_image(folder / "images", 0))
        ):
            layout.name, layout.splits[split] = "tiny-imagenet", partial(_list_annotated, folder)
        elif _has_classes(folder):
            layout.splits[split] = partial(list_classes, folder)
            layout.class_folders[split] = folder
        elif split == "validation" and (csv := _find_solution(folder)):
            layout.name, layout.splits[split] = _KAGGLE, partial(_list_solution, folder, csv)
        else:
            layout.left_out.append(Note(name, _why_unlabeled(folder, split)))
    layout.left_out += _other_entries(path, {*known, _SOLUTION})
    # A class may be called "train", but if all folders are named after splits they are splits.
    return layout if layout.splits or (known and len(known) == len(folders)) else None


def find_class_folders(path: Path) -> Layout | None:
    """Recognize CLASS/ without splits: for a hold-out, or for evaluation only (as ImageNetV2)."""
    if not any(_holds_image(path / name, 1) for name in _folders(path)):
        return None
    return Layout("class folders without splits", path, {ALL: partial(list_classes, path)})


def _has_classes(root: Path) -> bool:
    """Return whether `root` has class folders; a lone "images" folder holds unlabeled images."""
    return root.is_dir() and _folders(root) not in ([], ["images"])


def _holds_image(folder: Path, depth: int) -> bool:
    """Return whether an image is in `folder` or up to `depth` levels below; True if unreadable."""
    try:
        names = [entry.name for entry in list_folder(folder) if not is_hidden(entry.name)]
        return any(map(is_image, names)) or (
            depth > 0 and any(_holds_image(folder / name, depth - 1) for name in _folders(folder))
        )
    except OSError:
        return True


def _folders(path: Path) -> list[str]:
    """Return the folders in `path` that are not hidden; OSError for a split's broken link."""
    found = []
    for entry in list_folder(path):
        try:
            if not is_hidden(entry.name) and is_folder(entry):
                found.append(entry.name)
        except OSError:
            if split_name(entry.name):
                raise
    return found


def _other_entries(path: Path, read: set[str]) -> list[Note]:
    """Return the entries of `path` other than the names that are read."""
    return [
        Note(e.name, HIDDEN if is_hidden(e.name) else "in no split")
        for e in list_folder(path)
        if e.name not in read
    ]


def _why_unlabeled(folder: Path, split: str) -> str:
    """Return why a folder of a split is not read."""
    wanted = "class folders"
    if split == "validation":
        wanted = f"class folders, {_ANNOTATIONS} or {_SOLUTION} (which Kaggle puts beside ILSVRC/)"
    images = any(is_image(e.name) or e.name == "images" for e in list_folder(folder))
    return f"{'images without labels' if images else 'no images'}: it has no {wanted}"


def _find_solution(folder: Path) -> Path | None:
    """Return Kaggle's CSV for the images in `folder`: in it, or in one of four folders above."""
    for start in (folder.absolute(), folder.resolve()):
        for place in (start, *list(start.parents)[:4]):
            if (place / _SOLUTION).is_file():
                return place / _SOLUTION
    return None


def _list_solution(folder: Path, csv: Path) -> Split:
    """List `folder/NAME.JPEG` with classes from lines "NAME,CLASS 10 20 300 400 CLASS ..."."""
    rows = [line.split(",", 1) for line in read_lines(csv)]
    classes = {row[0].strip(): row[1].split()[0] for row in rows[1:] if row[1:] and row[1].strip()}
    return _list_labeled(folder, "", classes, csv)


def _list_annotated(folder: Path) -> Split:
    """List `folder/images/FILE` with classes from lines "FILE <tab> CLASS <tab> box"."""
    path = folder / _ANNOTATIONS
    rows = [line.split() for line in read_lines(path)]
    return _list_labeled(folder, "images/", {row[0]: row[1] for row in rows if len(row) > 1}, path)


def _list_labeled(folder: Path, prefix: str, classes: dict[str, str], path: Path) -> Split:
    """List the files of `folder` whose class the file `path` gives, by name or by stem.

    They are sorted by class and then by name, as if they were in class folders.
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
