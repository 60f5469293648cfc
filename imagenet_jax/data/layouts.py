"""Layouts of data sets on disk with their splits, and recognizers of folders of images.

A recognizer takes a path and returns a `Layout`, or None if it finds something else. The
recognizers of shards are in `shard_layouts`. A split is listed only when it is used.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath

import numpy as np

from imagenet_jax.data.image_files import (
    HIDDEN,
    IMAGE_SUFFIXES,
    Note,
    Split,
    SplitSource,
    StoredImage,
    is_folder,
    is_hidden,
    is_image,
    is_utf8,
    list_classes,
    list_folder,
    read_lines,
    walk,
)
from imagenet_jax.data.sampler import permutation
from imagenet_jax.errors import UserError

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
ALL = "all"  # name of the only split if class folders are not split
_CLS_LOC = ("ILSVRC", "Data", "CLS-LOC")
_KAGGLE = "Kaggle's ILSVRC/Data/CLS-LOC"
_SOLUTION = "LOC_val_solution.csv"  # Kaggle's validation labels
_ANNOTATIONS = "val_annotations.txt"  # validation labels of tiny-imagenet-200


def split_name(name: str) -> str | None:
    """Return the split that a folder or file is named after, ignoring case, or None.

    "Val" is "validation".
    """
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


@dataclass
class Layout:
    """A data set on disk.

    Attributes:
      name: name of the layout.
      path: folder of the data set.
      splits: "train", "validation", "test" or `ALL` -> function that lists the split.
      class_folders: split -> its folder, for splits with a folder for each class.
      left_out: entries of `path` that belong to no split.
    """

    name: str
    path: Path
    splits: dict[str, Callable[[], Split]]
    class_folders: dict[str, Path] = field(default_factory=dict)
    left_out: list[Note] = field(default_factory=list)

    def list_split(self, split: str) -> Split:
        """Return a split, given any of its names or the name of its folder.

        Raises UserError if it is missing, damaged, or has a class without images.
        """
        if split not in self.splits and _has_classes(self.path / split):
            return _checked(list_classes(self.path / split))
        if ALL in self.splits and split == "validation":
            split = ALL
        elif ALL not in self.splits and split not in self.splits:
            split = split_name(split) or split
        if split not in self.splits:
            raise UserError(self._why_missing(split))
        return _checked(self.splits[split]())

    def open_split(self, split: str, holdout: float = 0) -> SplitSource:
        """Return the images of a split.

        Args:
          holdout: fraction of each class to hold out as "validation", at least one image; the rest
            is "train". It divides class folders without splits, or shards that have a train split
            and no validation split. The images do not depend on the seed of a run, so that runs
            can be compared. 0: no hold-out.
        """
        if not holdout:
            return SplitSource(self.list_split(split))
        if split not in ("train", "validation"):
            raise UserError(
                f"config.data.holdout makes splits 'train' and 'validation', not {split!r}"
            )
        # With folders, the user can give the path of the train folder; shards have no such path.
        only_train = self.splits.keys() - {"test"} == {"train"} and not self.class_folders
        if ALL not in self.splits and not only_train:
            raise UserError(
                f"{self.path} has splits of its own ({', '.join(self.splits) or self.name}) and "
                "needs no config.data.holdout; set it to 0, or point config.data.path at class "
                "folders"
            )
        whole = _checked(self.splits["train" if only_train else ALL]())
        by_class: list[list[StoredImage]] = [[] for _ in whole.class_names]
        for image in whole.images:
            by_class[image.label].append(image)
        chosen: list[StoredImage] = []
        for label, mine in enumerate(by_class):
            if len(mine) < 2 and (mine or not only_train):
                raise UserError(
                    f"{whole.root / whole.class_names[label]} has one image; config.data.holdout "
                    "needs at least two"
                )
            held = min(len(mine) - 1, max(1, round(holdout * len(mine))))
            out = set(permutation(len(mine), seed=0, epoch=label)[:held].tolist())
            chosen += [x for i, x in enumerate(mine) if (i in out) == (split == "validation")]
        return SplitSource(whole, chosen)

    def _why_missing(self, split: str) -> str:
        """Return an error message for a missing split, with alternatives to it."""
        path = self.path
        if ALL in self.splits:
            return (
                f"{path / split} does not exist: {path} has class folders without splits. "
                "--config.data.holdout=0.2 keeps a fifth of each class for evaluation"
            )
        reasons = [f"; {name} is left out: {why}" for name, why in self.left_out
                   if split_name(PurePath(name).name) == split]  # fmt: skip
        advice = ""
        if split == "validation" and "train" in self.class_folders:
            advice = (
                f"; --config.data.path={self.class_folders['train']} --config.data.holdout=0.1 "
                "keeps a tenth of each class of the train split for evaluation"
            )
        elif split == "validation" and "train" in self.splits:
            advice = (
                "; --config.data.holdout=0.05 keeps a twentieth of each class of the train split "
                "for evaluation"
            )
        splits = ", ".join(self.splits) or "no split"
        return f"{path} has no {split} split ({self.name}: {splits}){''.join(reasons)}{advice}"


def _checked(split: Split) -> Split:
    """Return the split. Raises UserError if it has problems or a class without images."""
    if split.problems:
        (name, why), count = split.problems[0], len(split.problems)
        where = str(split.root / name)
        where = where if is_utf8(where) else f"the name {os.fsencode(where)!r}"
        more = f" (the first of {count:,}; the doctor lists them)" if count > 1 else ""
        raise UserError(f"{where} {why}{more}")
    if not split.class_names:
        raise UserError(f"{split.root} has no class folders; it should hold CLASS/*.JPEG")
    odd = [i for i in split.images if not 0 <= i.label < len(split.class_names)]
    if odd:
        raise UserError(
            f"{split.name or split.root} has {len(odd):,} images whose label is not a class, "
            f"such as {odd[0].id} with {odd[0].label}; use another split, or write it again"
        )
    counts = np.bincount([image.label for image in split.images], minlength=len(split.class_names))
    if not counts.all() and not any(image.shard for image in split.images):
        empty = split.root / split.class_names[int(np.argmin(counts))]
        raise UserError(f"{empty} has no images ({' '.join(IMAGE_SUFFIXES)})")
    return split


def find_cls_loc(path: Path) -> Layout | None:
    """Recognize Kaggle's ILSVRC/Data/CLS-LOC, given any folder of that path."""
    for parts in (_CLS_LOC, _CLS_LOC[1:], _CLS_LOC[2:]):
        inner = path.joinpath(*parts)
        layout = find_split_folders(inner) if inner.is_dir() else None
        if layout:
            below = "/".join(parts)
            left_out = [Note(f"{below}/{name}", why) for name, why in layout.left_out]
            for depth, part in enumerate(parts):
                for name, why in _other_entries(path.joinpath(*parts[:depth]), {part, _SOLUTION}):
                    left_out.append(Note("/".join((*parts[:depth], name)), why))
            return Layout(_KAGGLE, path, layout.splits, layout.class_folders, left_out)
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
    """Recognize class folders without splits, for a hold-out or only evaluation (ImageNetV2)."""
    if not any(_holds_image(path / name, 1) for name in _folders(path)):
        return None
    return Layout("class folders without splits", path, {ALL: partial(list_classes, path)})


def _has_classes(root: Path) -> bool:
    """Return whether `root` has class folders; a lone "images" folder holds unlabeled images."""
    return root.is_dir() and _folders(root) not in ([], ["images"])


def _holds_image(folder: Path, depth: int) -> bool:
    """Return whether `folder` has an image, at most `depth` levels below, or cannot be read."""
    try:
        names = [entry.name for entry in list_folder(folder) if not is_hidden(entry.name)]
        return any(map(is_image, names)) or (
            depth > 0 and any(_holds_image(folder / name, depth - 1) for name in _folders(folder))
        )
    except OSError:
        return True


def _folders(path: Path) -> list[str]:
    """Return the folders in `path` that are not hidden.

    Raises OSError for a broken link that is named after a split.
    """
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
    """Return the entries of `path` whose names are not in `read`."""
    return [
        Note(e.name, HIDDEN if is_hidden(e.name) else "in no split")
        for e in list_folder(path)
        if e.name not in read
    ]


def _why_unlabeled(folder: Path, split: str) -> str:
    """Return why a folder of a split is not read."""
    files = f", {_ANNOTATIONS} or {_SOLUTION} (which Kaggle puts beside ILSVRC/)"
    images = any(is_image(e.name) or e.name == "images" for e in list_folder(folder))
    what = "images without labels" if images else "no images"
    return f"{what}: it has no class folders{files if split == 'validation' else ''}"


def _find_solution(folder: Path) -> Path | None:
    """Return Kaggle's CSV of labels, from `folder` or one of the four folders above it."""
    starts = (folder.absolute(), folder.resolve())
    places = (place for start in starts for place in (start, *list(start.parents)[:4]))
    return next((place / _SOLUTION for place in places if (place / _SOLUTION).is_file()), None)


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
    """List the files of `folder` with `classes`, by name or stem, that were read from `path`.

    They are sorted by class and then by name, as if they were in class folders.
    """
    if not classes:
        raise UserError(f"{path} has no line with an image and its class")
    names = tuple(sorted(set(classes.values())))
    labels = {name: label for label, name in enumerate(names)}
    split = Split(folder, names)
    missing = set(classes)

    def label(name: str) -> int | None:
        image = name.removeprefix(prefix)
        key = image if image in classes else image.rpartition(".")[0]
        missing.discard(key)
        if key not in classes:
            split.problems.append(Note(name, f"is not in {path.name}"))
            return None
        return labels[classes[key]]

    split.add(walk(folder), "", label)
    split.left_out = [note for note in split.left_out if note.name != path.name]
    problem = f"is listed in {path.name}, but does not exist"
    split.problems += [Note(name, problem) for name in sorted(missing)]
    split.images.sort(key=lambda image: (image.label, image.name))
    return split
