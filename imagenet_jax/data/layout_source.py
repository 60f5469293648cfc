"""Data sets in folders and shards: recognition of the layout, and its splits as sources."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np

from imagenet_jax.data import Record, layouts, shard_layouts
from imagenet_jax.data.image_files import (
    IMAGE_SUFFIXES,
    ImageTable,
    StoredImage,
    is_utf8,
    read_image,
)
from imagenet_jax.data.layouts import ALL, Layout, Split, split_name
from imagenet_jax.data.sampler import permutation
from imagenet_jax.errors import UserError
from imagenet_jax.files import hash_texts

# Each takes a path and returns a Layout or None; the first that finds a split decides.
_RECOGNIZERS = (
    layouts.find_cls_loc,
    layouts.find_split_folders,
    shard_layouts.find_numbered_shards,
    layouts.find_class_folders,
    shard_layouts.find_parquet,
    shard_layouts.find_webdataset,
)


def recognize(path: Path) -> Layout | None:
    """Return the layout of the data set at `path`, or None.

    If no recognizer finds a split, return the first layout that explains why.
    """
    if not path.is_dir():
        return None
    without_splits: Layout | None = None
    for recognizer in _RECOGNIZERS:
        layout = recognizer(path)
        if layout and layout.splits:
            return layout
        without_splits = without_splits or layout
    return without_splits


class LayoutSource:
    """The images of a split, or some of them, in the split's order."""

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
    """Return the image's part of the fingerprint, with its class unless its folder names it."""
    known = 0 <= image.label < len(split.class_names)  # the doctor reports any other label
    name = split.class_names[image.label] if known else str(image.label)
    implied = not image.shard and image.name.startswith(f"{name}/")
    return f"{image.name} {image.size}" + ("" if implied else f" {name}")


def open_layout(layout: Layout, split: str) -> LayoutSource:
    """Return the images of a split; UserError if it is missing, damaged or incomplete."""
    return LayoutSource(list_split(layout, split))


def list_split(layout: Layout, split: str) -> Split:
    """Return a split in which every class has images. Raises UserError otherwise."""
    find = layout.find(split)
    if not find:
        raise UserError(_no_split(layout, split))
    return _checked(find())


def open_held_out(layout: Layout, split: str, share: float) -> LayoutSource:
    """Return the images of class folders that are held out ("validation") or the rest ("train").

    Shards with a train split and no validation split are divided likewise. `share` of each class
    is held out, at least one image, and always the same images whatever the seed of a run, so that
    runs can be compared.
    """
    if split not in ("train", "validation"):
        raise UserError(f"config.data.holdout makes splits 'train' and 'validation', not {split!r}")
    # With folders the user can name the train folder instead; with shards there is none to name.
    only_train = list(layout.splits.keys() - {"test"}) == ["train"] and not layout.class_folders
    if ALL not in layout.splits and not only_train:
        raise UserError(
            f"{layout.path} has splits of its own ({', '.join(layout.splits) or layout.name}) and "
            "needs no config.data.holdout; set it to 0, or point config.data.path at class folders"
        )
    whole = _checked(layout.splits["train" if only_train else ALL]())
    by_class: list[list[StoredImage]] = [[] for _ in whole.class_names]
    for image in whole.images:
        by_class[image.label].append(image)
    chosen: list[StoredImage] = []
    for label, mine in enumerate(by_class):
        if len(mine) < 2 and (mine or not only_train):
            raise UserError(
                f"{whole.root / whole.class_names[label]} has one image; config.data.holdout needs "
                "at least two"
            )
        held = min(len(mine) - 1, max(1, round(share * len(mine))))
        out = set(permutation(len(mine), seed=0, epoch=label)[:held].tolist())
        chosen += [image for i, image in enumerate(mine) if (i in out) == (split == "validation")]
    return LayoutSource(whole, chosen)


def _checked(split: Split) -> Split:
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
            f"first {odd[0].id} with {odd[0].label}; it cannot be used"
        )
    counts = np.bincount([image.label for image in split.images], minlength=len(split.class_names))
    if not counts.all() and not any(image.shard for image in split.images):
        empty = split.root / split.class_names[int(np.argmin(counts))]
        raise UserError(f"{empty} has no images ({' '.join(IMAGE_SUFFIXES)})")
    return split


def _no_split(layout: Layout, split: str) -> str:
    """Return what is missing, and ways to do without it."""
    path = layout.path
    if ALL in layout.splits:
        return (
            f"{path / split} does not exist: {path} has class folders without splits. "
            "--config.data.holdout=0.2 keeps a fifth of each class for evaluation"
        )
    meant = split_name(split) or split
    reasons = [f"; {name} is left out: {why}" for name, why in layout.left_out
               if split_name(PurePath(name).name) == meant]  # fmt: skip
    advice = ""
    if meant == "validation" and "train" in layout.class_folders:
        advice = (
            f"; --config.data.path={layout.class_folders['train']} --config.data.holdout=0.1 keeps "
            "a tenth of each class of the train split for evaluation"
        )
    elif meant == "validation" and "train" in layout.splits:
        advice = (
            "; --config.data.holdout=0.05 keeps a twentieth of each class of the train split for "
            "evaluation"
        )
    return (
        f"{path} has no {meant} split ({layout.name}: {', '.join(layout.splits) or 'no split'})"
        f"{''.join(reasons)}{advice}"
    )
