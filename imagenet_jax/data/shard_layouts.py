"""Recognizers of data sets in shards: tars of webdataset and parquet files of Hugging Face."""

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from imagenet_jax.data.classes import imagenet_wnids
from imagenet_jax.data.image_files import (
    HIDDEN,
    Note,
    Split,
    StoredImage,
    is_folder,
    is_hidden,
    is_image,
    is_utf8,
    list_folder,
    read_lines,
)
from imagenet_jax.data.layouts import Layout, split_name
from imagenet_jax.data.shard_files import read_parquet_rows, read_tar_members
from imagenet_jax.errors import UserError
from imagenet_jax.files import parse_json

_KINDS = {".parquet": "Hugging Face parquet", ".tar": "webdataset"}  # suffix -> name of the layout
_FOLDERS = ("data", "default")  # folders that may have shards, like those named after splits
_CLASS_FILES = ("classes.txt", "classnames.txt")  # a name per line, in the order of labels
_MAX_LABEL = 2**31 - 1

Shards = dict[str, list[str]]  # split -> paths below the folder of the data set


def find_shards(path: Path) -> Layout | None:
    """Recognize parquet files with columns of images and labels, or tars of images and labels.

    A tar has KEY.jpg beside KEY.cls, or beside a KEY.json with a "label".
    """
    return _find_layout(path, lambda shard: True)


def find_numbered_shards(path: Path) -> Layout | None:
    """Recognize shards beside other folders with images, such as assets/teaser.png.

    The names of such shards contain a number and a split, or they are in a folder of `_FOLDERS` or
    a folder named after a split.
    """

    def is_numbered(shard: str) -> bool:
        words = re.split(r"[-_.]", shard)
        numbered = any(re.fullmatch(r"\d{4,}", word) for word in words)
        return "/" in shard or (numbered and any(map(split_name, words)))

    return _find_layout(path, is_numbered)


def _find_layout(path: Path, is_wanted: Callable[[str], bool]) -> Layout | None:
    for suffix, name in _KINDS.items():
        shards: Shards = {}
        left_out: list[Note] = []
        _find_shards(path, "", suffix, shards, left_out)
        if any(is_wanted(shard) for some in shards.values() for shard in some):
            layout = Layout(name, path, {}, left_out=left_out)
            for split in shards:
                layout.splits[split] = partial(_list_split, path, split, shards)
            return layout
    return None


def _find_shards(path: Path, below: str, suffix: str, shards: Shards, left_out: list[Note]) -> None:
    """Find the shards in `path / below`, and in its folders that are named after splits.

    A shard belongs to the split that its name or a folder above it names, else to "train". The
    official archives of ImageNet are not shards.
    """
    for entry in list_folder(path / below):
        name = f"{below}{entry.name}"
        folder = is_folder(entry)
        if is_hidden(entry.name):
            left_out.append(Note(name, HIDDEN))
        elif folder and (split_name(entry.name) or entry.name in _FOLDERS):
            _find_shards(path, f"{name}/", suffix, shards, left_out)
        elif folder or not name.endswith(suffix) or name.startswith("ILSVRC2012_"):
            if entry.name not in _CLASS_FILES:
                left_out.append(Note(name, f"no {suffix} file"))
        else:
            words = [*re.split(r"[-_.]", PurePosixPath(name).stem), *reversed(below.split("/"))]
            split = next((split for word in words if (split := split_name(word))), "train")
            shards.setdefault(split, []).append(name)


def _list_split(path: Path, split: str, shards: Shards) -> Split:
    """List the records of a split, in the order of shards and of their contents."""
    wnids = imagenet_wnids()
    found = Split(path, name=f"{path}:{split}")
    found.problems += _find_missing(shards[split])
    names = _add_shards(found, shards[split])
    largest = max((image.label for image in found.images), default=-1)
    found.class_names = names or _find_class_names(path, shards, split, largest)
    if found.class_names == wnids:
        for image in found.images:
            wnid = re.match(r"n\d{8}(?=_)", PurePosixPath(image.name).name)
            # Labels that are out of range are reported elsewhere.
            if wnid and 0 <= image.label < len(wnids) and wnid[0] != wnids[image.label]:
                why = f"has label {image.label}, which is {wnids[image.label]}"
                found.problems.append(Note(image.id, why))
    return found


def _add_shards(split: Split, shards: list[str]) -> tuple[str, ...]:
    """Add the images of all shards. Return the class names of parquet files, () if they have none.

    Raises UserError if two files have different names, so that a label means different classes.
    """
    names: tuple[str, ...] | None = None
    for shard in shards:
        if not is_utf8(shard):
            split.problems.append(Note(shard, "is not UTF-8; rename it"))
        elif shard.endswith(".tar"):
            _add_tar(split, shard)
        else:
            of_shard = _add_parquet(split, shard)
            if names is not None and names != of_shard:
                raise UserError(
                    f"{split.root}: {shards[0]} has {_describe(names)}, but {shard} has "
                    f"{_describe(of_shard)}; write both with the same class names"
                )
            names = of_shard
    return names or ()


def _describe(names: tuple[str, ...]) -> str:
    more = ", ..." if len(names) > 5 else ""
    return f"the class names {', '.join(names[:5])}{more}" if names else "no class names"


def _find_missing(shards: list[str]) -> Iterator[Note]:
    """Yield the shards that are missing, by names such as "train-00000-of-00257"."""
    parts = [re.fullmatch(r"(.*)-\d+-of-(\d+)(\..*)", shard) for shard in shards]
    for prefix, total, suffix in sorted({match.groups() for match in parts if match}):
        names = (f"{prefix}-{i:0{len(total)}d}-of-{total}{suffix}" for i in range(int(total)))
        yield from (Note(x, "is missing: download it again") for x in names if x not in shards)


def _find_class_names(path: Path, shards: Shards, split: str, largest: int) -> tuple[str, ...]:
    """Return names from a file beside the shards, or else ImageNet's ids, or else numbers."""
    for file in _CLASS_FILES:
        if (path / file).is_file():
            names = tuple(line.strip() for line in read_lines(path / file) if line.strip())
            if len(set(names)) == len(names) > largest:
                return names
            raise UserError(
                f"{path / file} has {len(names)} names, {len(set(names))} of them different; the "
                f"largest label is {largest}; write one name per label, or remove the file"
            )
    every = [PurePosixPath(shard).name for some in shards.values() for shard in some]
    if largest == len(imagenet_wnids()) - 1 and all(re.match("imagenet", s, re.I) for s in every):
        return imagenet_wnids()
    for other in shards.keys() - {split}:
        found = Split(path)
        _add_shards(found, shards[other])
        largest = max(largest, *(image.label for image in found.images), -1)
    return tuple(map(str, range(largest + 1)))


def _add_tar(split: Split, shard: str) -> None:
    """Add the images of a tar to a split. Only headers and labels are read.

    A key that appears again after its sample is complete, as in tars joined with `tar -A`, is a
    problem, because it is not known which label belongs to which image.
    """
    images: dict[str, StoredImage] = {}
    labels: dict[str, int] = {}
    twice, names, last = set[str](), set[str](), ""
    path = split.root / shard
    with path.open("rb") as file:
        for name, offset, size, regular in read_tar_members(path):
            if not regular:
                continue
            stem, _, kind = PurePosixPath(name).name.partition(".")
            key = str(PurePosixPath(name).with_name(stem)) if stem else name
            if any(map(is_hidden, PurePosixPath(name).parts)):
                split.left_out.append(Note(f"{shard}/{name}", HIDDEN))
                continue
            if not is_utf8(name):
                why = "is not UTF-8; rename it and write the tar again"
                split.problems.append(Note(f"{shard}/{name}", why))
                continue
            if name in names or (key != last and key in images and key in labels):
                twice.add(key)
            names.add(name)
            last = key
            if is_image(f".{kind}") and key not in images:
                images[key] = StoredImage(name, -1, size, shard=shard, offset=offset)
            elif kind in ("cls", "json"):
                label = _parse_label(kind, os.pread(file.fileno(), size, offset))
                if label is not None and (kind == "cls" or key not in labels):
                    labels[key] = label
            else:
                split.left_out.append(Note(f"{shard}/{name}", "neither image nor class"))
    for key, image in images.items():
        if key in twice:
            why = "appears twice; write the tar again with a different key for every image"
            split.problems.append(Note(image.id, why))
        elif labels.get(key, -1) < 0:
            why = f"has no class: neither a number in {key}.cls nor a label in {key}.json"
            split.problems.append(Note(image.id, why))
        else:
            split.images.append(image._replace(label=labels[key]))


def _add_parquet(split: Split, shard: str) -> tuple[str, ...]:
    """Add the images of a parquet file to a split. Return its class names, () if it has none."""
    rows, names = read_parquet_rows(split.root / shard)
    for name, label, size, offset in rows:
        if label is None or abs(label) > _MAX_LABEL:
            why = "has no label" if label is None else f"has label {label}, which is not a class"
            split.problems.append(Note(f"{shard}/{name}", why))
        else:
            split.images.append(StoredImage(name, label, size, shard=shard, offset=offset))
    return names


def _parse_label(kind: str, content: bytes) -> int | None:
    """Return the label in a .cls or .json file, or None if it has none."""
    try:
        label = int(content if kind == "cls" else parse_json(content)["label"])
        return label if abs(label) <= _MAX_LABEL else None
    except (ValueError, KeyError, TypeError):
        return None
