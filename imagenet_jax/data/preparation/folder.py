"""An image folder as a data set to prepare."""

import hashlib
import os
import re
from pathlib import Path

from imagenet_jax.data.folder import IMAGE_SUFFIXES
from imagenet_jax.data.preparation import index
from imagenet_jax.data.preparation.dataset import Dataset
from imagenet_jax.errors import UserError

_SPLITS = {"train": ("train",), "validation": ("validation", "val")}


def dataset(path: Path, name: str) -> Dataset:
    """The images of `path/train/CLASS/` and, where it is there, `path/validation/` or `path/val/`.

    Files are stored as they are where they are JPEGs; a folder without a JPEG is stored as PNG,
    without loss. A record's file_name is "CLASS/FILE". Raises UserError where the folder or the
    name is not as it should be.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"--name={name!r}: tfds wants small letters, digits and _, a letter first")
    roots = {
        split: path / folder
        for split, folders in _SPLITS.items()
        for folder in [next((f for f in folders if (path / f).is_dir()), None)]
        if folder
    }
    if "train" not in roots:
        raise UserError(f"--folder={path} has no train/; it should hold train/CLASS/*.JPEG")
    classes = {split: _classes(root) for split, root in roots.items()}
    for split, found in classes.items():
        odd = sorted(set(found) ^ set(classes["train"]))
        if odd:
            raise UserError(f"{path}: train and {split} differ in their classes, first in {odd[0]}")
    digest = hashlib.sha256()
    entries = {split: _entries(root, classes[split], digest) for split, root in roots.items()}
    names = (entry.name.lower() for found in entries.values() for entry in found)
    return Dataset(
        name=name,
        version="1.0.0",
        class_names=tuple(classes["train"]),
        description=f"Prepared from the image folder {path.name}.",
        source=f"the folder {path}",
        identity={"content": digest.hexdigest()},
        encoding="jpeg" if any(n.endswith((".jpg", ".jpeg")) for n in names) else "png",
        scan=lambda pool: {s: index.build(roots[s], s, found) for s, found in entries.items()},
    )


def _classes(root: Path) -> list[str]:
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if not classes:
        raise UserError(f"{root} has no class folders; it should hold CLASS/*.JPEG")
    return classes


def _entries(root: Path, classes: list[str], digest: "hashlib._Hash") -> list[index.Entry]:
    """The images below `root`; their names, sizes and times go into `digest`."""
    entries: list[index.Entry] = []
    for label, name in enumerate(classes):
        before = len(entries)
        for file in sorted(os.scandir(root / name), key=lambda f: f.name):
            if file.name.lower().endswith(IMAGE_SUFFIXES):
                stat = file.stat()
                entry = index.Entry(f"{name}/{file.name}", label, -1, stat.st_size)
                digest.update(f"{root.name}/{entry} {stat.st_mtime_ns}\0".encode())
                entries.append(entry)
        if len(entries) == before:
            raise UserError(f"{root / name} has no images ({' '.join(IMAGE_SUFFIXES)})")
    return entries
