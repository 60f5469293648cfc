"""A data set in one of the layouts of `layouts` as a data set to prepare."""

import hashlib
import re
from pathlib import Path, PurePosixPath

from imagenet_jax.data.folder import list_split
from imagenet_jax.data.layouts import ALL, Split, split_name
from imagenet_jax.data.recognize import recognize
from imagenet_jax.data.stored_image import read_image
from imagenet_jax.data.walk import require_utf8
from imagenet_jax.errors import UserError, reading_files
from imagenet_jax.prepare import index
from imagenet_jax.prepare.dataset import Dataset


@reading_files()
def dataset(path: Path, name: str) -> Dataset:
    """The images of every split of the layout that is recognized at `path`.

    Files are stored as they are where they are JPEGs; a data set without a JPEG is stored as PNG,
    without loss. A record's file_name is the image's path below the folder of its split. Raises
    UserError where the folder or the name is not as it should be.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"--name={name!r}: tfds wants small letters, digits and _, a letter first")
    require_utf8(path)
    layout = recognize(path)
    if not layout or ALL in layout.splits:
        raise UserError(
            f"--folder={path} has no train/; it should hold train/CLASS/*.JPEG, or another layout "
            "that docs/data.md lists"
        )
    wanted = [split for split in ("train", "validation") if split in layout.splits] or ["train"]
    splits = {split: list_split(layout, split) for split in wanted}
    names = next(iter(splits.values())).class_names
    for split, found in splits.items():
        if found.class_names != names:
            odd = sorted(set(found.class_names) ^ set(names))
            how = f", first in {odd[0]}" if odd else ": the same names in a different order"
            raise UserError(
                f"{path}: {next(iter(splits))} and {split} differ in their classes{how}"
            )
    for class_name in names:
        if class_name.strip() != class_name or "\n" in class_name or "\r" in class_name:
            raise UserError(
                f"{path}: class {class_name!r} begins or ends with a space or has a line break, "
                "which tfds's list of classes does not keep; rename its folders"
            )
    digest = hashlib.sha256()
    for split, found in splits.items():
        for image in found.images:
            digest.update(f"{split} {found.root.name}/{image}\0".encode())
    if "validation" not in splits:
        print(f"{path} ({layout.name}) has no validation split; it has {', '.join(splits)}")
        images = splits["train"].images
        tail = {image.label for image in images[len(images) * 95 // 100 :]}
        if images[0].shard.endswith(".parquet") and tail != {image.label for image in images}:
            print(
                f"{path}: records keep the order of the parquet files, whose last 5% lack classes; "
                f"do not slice them: use --config.data.path={path} --config.data.holdout=0.05"
            )
    for other in layout.splits.keys() - splits.keys():
        print(f"{path}: the {other} split is left out; prepare takes train and validation only")
    for entry, why in layout.left_out:
        if split_name(PurePosixPath(entry).name):
            print(f"{path / entry} is left out: {why}")
    return Dataset(
        name=name,
        version="1.0.0",
        class_names=names,
        description=f"Prepared from {path.name} ({layout.name}).",
        source=f"the folder {path}",
        identity={"content": digest.hexdigest()},
        encoding="jpeg" if any(map(_has_jpeg, splits.values())) else "png",
        scan=lambda pool: {split: _index(split, found) for split, found in splits.items()},
    )


def _has_jpeg(split: Split) -> bool:
    """Whether an image is called one, or, where names have no suffix, whether the first is one."""
    suffixes = {PurePosixPath(image.name).suffix.lower() for image in split.images}
    if suffixes - {""}:
        return bool(suffixes & {".jpg", ".jpeg"})
    return read_image(split.root, split.images[0]).startswith(b"\xff\xd8")


def _index(split: str, found: Split) -> index.Index:
    return index.build(found.root, split, found.images)
