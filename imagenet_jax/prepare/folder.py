"""Opens a data set in folders or shards as a data set to prepare."""

import hashlib
import re
from pathlib import Path, PurePosixPath

from imagenet_jax.data.image_files import Split, read_image, require_utf8
from imagenet_jax.data.layouts import ALL, Layout, split_name
from imagenet_jax.data.sources import recognize
from imagenet_jax.errors import UserError, reading_files
from imagenet_jax.prepare.prepare import Dataset
from imagenet_jax.prepare.shards import order_images


@reading_files()
def open_folder(path: Path, name: str) -> Dataset:
    """Return the images of every split of the layout that is recognized at `path`.

    JPEGs are stored unchanged. A data set without JPEGs is stored as lossless PNGs. The file_name
    of a record is the path of its image relative to the folder of the split. Raises UserError if
    the name or the folder cannot be used.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"--name={name!r}: use lower-case letters, digits and _, starting with a letter"
        )
    require_utf8(path)
    print(f"listing the images in {path}", flush=True)
    layout = recognize(path)
    if not layout or ALL in layout.splits:
        raise UserError(
            f"--folder={path} has no train/; it should hold train/CLASS/*.JPEG, or another layout "
            "that docs/data.md lists"
        )
    wanted = [split for split in ("train", "validation") if split in layout.splits] or ["train"]
    splits: dict[str, Split] = {split: layout.list_split(split) for split in wanted}
    _check_class_names(path, splits)
    digest = hashlib.sha256()
    for split, found in splits.items():
        for image in found.images:
            digest.update(f"{split} {found.root.name}/{image}\0".encode())
    _print_left_out(path, layout, splits)
    return Dataset(
        name=name,
        version="1.0.0",
        class_names=next(iter(splits.values())).class_names,
        description=f"Prepared from {path.name} ({layout.name}).",
        source=f"the folder {path}",
        identity={"content": digest.hexdigest()},
        encoding="jpeg" if any(map(_has_jpeg, splits.values())) else "png",
        scan=lambda pool: {
            split: order_images(found.root, split, found.images) for split, found in splits.items()
        },
    )


def _check_class_names(path: Path, splits: dict[str, Split]) -> None:
    """Raise UserError if splits have different classes, or names that tfds cannot store."""
    first, names = next((split, found.class_names) for split, found in splits.items())
    for split, found in splits.items():
        if found.class_names != names:
            odd = sorted(set(found.class_names) ^ set(names))
            how = f", first in {odd[0]}" if odd else ": the same names in a different order"
            raise UserError(f"{path}: {first} and {split} differ in their classes{how}")
    for name in names:
        if name.strip() != name or "\n" in name or "\r" in name:
            raise UserError(
                f"{path}: class {name!r} begins or ends with a space or has a line break, "
                "which tfds's list of classes does not keep; rename its folders"
            )


def _print_left_out(path: Path, layout: Layout, splits: dict[str, Split]) -> None:
    if "validation" not in splits:
        print(f"{path} ({layout.name}) has no validation split; it has {', '.join(splits)}")
        images = splits["train"].images
        tail = {image.label for image in images[len(images) * 95 // 100 :]}
        if images[0].shard.endswith(".parquet") and tail != {image.label for image in images}:
            print(
                f"{path}: records keep the order of the parquet files, and their last 5% lack some "
                f"classes; instead of slicing, use --config.data.path={path} "
                "--config.data.holdout=0.05"
            )
    for other in layout.splits.keys() - splits.keys():
        print(f"{path}: the {other} split is left out; prepare takes only train and validation")
    for entry, why in layout.left_out:
        if split_name(PurePosixPath(entry).name):
            print(f"{path / entry} is left out: {why}")


def _has_jpeg(split: Split) -> bool:
    """Return whether an image has a JPEG suffix or, if no name has a suffix, JPEG bytes."""
    suffixes = {PurePosixPath(image.name).suffix.lower() for image in split.images}
    if suffixes - {""}:
        return bool(suffixes & {".jpg", ".jpeg"})
    return read_image(split.root, split.images[0]).startswith(b"\xff\xd8")
