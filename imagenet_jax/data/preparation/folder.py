"""An image folder as a data set to prepare."""

import hashlib
import re
from pathlib import Path

from imagenet_jax.data.folder import class_folders, image_files, require_utf8, split_folder
from imagenet_jax.data.preparation import index
from imagenet_jax.data.preparation.dataset import Dataset
from imagenet_jax.errors import UserError, reading_files


@reading_files()
def dataset(path: Path, name: str) -> Dataset:
    """The images of `path/train/CLASS/` and, where it is there, `path/validation/` or `path/val/`.

    Files are stored as they are where they are JPEGs; a folder without a JPEG is stored as PNG,
    without loss. A record's file_name is "CLASS/FILE". Raises UserError where the folder or the
    name is not as it should be.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"--name={name!r}: tfds wants small letters, digits and _, a letter first")
    require_utf8(path)
    roots = {
        split: root for split in ("train", "validation") if (root := split_folder(path, split))
    }
    if "train" not in roots:
        raise UserError(f"--folder={path} has no train/; it should hold train/CLASS/*.JPEG")
    classes = {split: class_folders(root) for split, root in roots.items()}
    for split, found in classes.items():
        odd = sorted(set(found) ^ set(classes["train"]))
        if odd:
            raise UserError(f"{path}: train and {split} differ in their classes, first in {odd[0]}")
    for class_name in classes["train"]:
        if class_name.strip() != class_name or "\n" in class_name or "\r" in class_name:
            raise UserError(
                f"{path}: class {class_name!r} begins or ends with a space or has a line break, "
                "which tfds's list of classes does not keep; rename its folders"
            )
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


def _entries(root: Path, classes: list[str], digest: "hashlib._Hash") -> list[index.Entry]:
    """The images below `root`; their names, sizes and times go into `digest`."""
    entries: list[index.Entry] = []
    for label, name in enumerate(classes):
        for file, info in image_files(root / name):
            entry = index.Entry(f"{name}/{file}", label, -1, info.st_size)
            digest.update(f"{root.name}/{entry} {info.st_mtime_ns}\0".encode())
            entries.append(entry)
    return entries
