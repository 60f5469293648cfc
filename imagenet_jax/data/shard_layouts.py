"""Data sets in shards: tars as webdataset writes them, parquet files as Hugging Face does."""

import os
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from imagenet_jax import strict_json
from imagenet_jax.data import parquet
from imagenet_jax.data.imagenet_classes import wnids
from imagenet_jax.data.layouts import Layout, Split, split_name
from imagenet_jax.data.stored_image import StoredImage
from imagenet_jax.data.text_file import read_lines
from imagenet_jax.data.walk import (
    HIDDEN,
    Note,
    is_folder,
    is_hidden,
    is_image,
    is_utf8,
    list_folder,
)
from imagenet_jax.errors import UserError

_FOLDERS = ("data", "default")  # between a data set's folder and its shards, beside split names
_CLASS_FILES = ("classes.txt", "classnames.txt")  # a name per line, in the order of labels
_LARGEST = 2**31 - 1  # label

Shards = dict[str, list[str]]  # split -> paths below the folder of the data set


def series_layout(path: Path) -> Layout | None:
    """Shards that are the data set even beside folders of images, such as assets/teaser.png.

    They are numbered and named after a split, or lie in a folder of the data set or of a split.
    """
    for layout_at, suffix in ((parquet_layout, ".parquet"), (webdataset_layout, ".tar")):
        shards: Shards = {}
        _find(path, "", suffix, shards, [])
        if any(map(_in_series, (shard for some in shards.values() for shard in some))):
            return layout_at(path)
    return None


def _in_series(shard: str) -> bool:
    words = re.split(r"[-_.]", shard)
    return "/" in shard or (
        any(map(split_name, words)) and any(re.fullmatch(r"\d{4,}", word) for word in words)
    )


def webdataset_layout(path: Path) -> Layout | None:
    """Tars of KEY.jpg beside KEY.cls or a KEY.json with a "label"."""
    return _layout("webdataset", path, ".tar")


def parquet_layout(path: Path) -> Layout | None:
    """Parquet files with an image column and a label column."""
    return _layout("Hugging Face parquet", path, ".parquet")


def _layout(name: str, path: Path, suffix: str) -> Layout | None:
    shards: Shards = {}
    left_out: list[Note] = []
    _find(path, "", suffix, shards, left_out)
    if not shards:
        return None
    return Layout(
        name, path, {split: partial(_list, path, split, shards) for split in shards},
        left_out=left_out,
    )  # fmt: skip


def _find(path: Path, below: str, suffix: str, shards: Shards, left_out: list[Note]) -> None:
    """The shards in `path / below`, and in its folders that are named after splits.

    A shard belongs to the split that its name or a folder above it names, else to "train". The
    official archives of ImageNet are none.
    """
    for entry in list_folder(path / below):
        name = f"{below}{entry.name}"
        folder = is_folder(entry)
        if is_hidden(entry.name):
            left_out.append(Note(name, HIDDEN))
        elif folder and (split_name(entry.name) or entry.name in _FOLDERS):
            _find(path, f"{name}/", suffix, shards, left_out)
        elif folder or not name.endswith(suffix) or name.startswith("ILSVRC2012_"):
            if entry.name not in _CLASS_FILES:
                left_out.append(Note(name, f"no {suffix} file"))
        else:
            words = [*re.split(r"[-_.]", PurePosixPath(name).stem), *reversed(below.split("/"))]
            split = next((split for word in words if (split := split_name(word))), "train")
            shards.setdefault(split, []).append(name)


def _list(path: Path, split: str, shards: Shards) -> Split:
    """The records of a split, in the order of shards and of what is in them."""
    found = Split(path, (), [], name=f"{path}:{split}")
    found.problems += _missing(shards[split])
    names = _add(found, shards[split])
    labels = {image.label for image in found.images}
    found.class_names = names or _class_names(path, shards, split, max(labels, default=-1))
    for image in found.images:
        said = re.match(r"n\d{8}(?=_)", PurePosixPath(image.name).name)
        known = 0 <= image.label < len(wnids())  # the label check reports others
        if found.class_names == wnids() and known and said and said[0] != wnids()[image.label]:
            found.problems.append(
                Note(image.id, f"has label {image.label}, which is {wnids()[image.label]}")
            )
    return found


def _add(split: Split, shards: list[str]) -> tuple[str, ...]:
    """Add the images of all shards; return the class names of parquet files, () if they have none.

    Raises UserError if the names of two files differ: their labels do not mean the same.
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


def _missing(shards: list[str]) -> Iterator[Note]:
    """Shards that are absent, by names such as "train-00000-of-00257"."""
    parts = [re.fullmatch(r"(.*)-(\d+)-of-(\d+)(\..*)", shard) for shard in shards]
    totals = {(m[1], m[3], m[4]) for m in parts if m}
    for prefix, total, suffix in sorted(totals):
        for i in range(int(total)):
            name = f"{prefix}-{i:0{len(total)}d}-of-{total}{suffix}"
            if name not in shards:
                yield Note(name, "is missing: download it again")


def _class_names(path: Path, shards: Shards, split: str, largest: int) -> tuple[str, ...]:
    """Names from a file beside the shards, ImageNet's ids, or the numbers themselves."""
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
    if largest == len(wnids()) - 1 and all(re.match("imagenet", name, re.I) for name in every):
        return wnids()
    for other in shards.keys() - {split}:
        found = Split(path, (), [])
        _add(found, shards[other])
        largest = max(largest, *(image.label for image in found.images), -1)
    return tuple(map(str, range(largest + 1)))


def _add_tar(split: Split, shard: str) -> None:
    """Add the images of a tar to a split; only headers and classes are read.

    A key that starts again after its sample is complete, as in tars joined with `tar -A`, is a
    problem: which label belongs to which image is unknown.
    """
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    twice: set[str] = set()
    names: set[str] = set()
    last = ""
    path = split.root / shard
    try:
        with path.open("rb") as file:
            for name, offset, size in _members(path, file):
                base = PurePosixPath(name).name
                stem, _, kind = base.partition(".")
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
                    images[key] = (name, offset, size)
                elif kind in ("cls", "json"):
                    label = _label(kind, os.pread(file.fileno(), size, offset))
                    if label is not None and (kind == "cls" or key not in labels):
                        labels[key] = label
                else:
                    split.left_out.append(Note(f"{shard}/{name}", "neither image nor class"))
    except tarfile.TarError as e:
        raise UserError(f"{path} is no tar archive or is cut off ({e}): download it again") from e
    for key, (name, offset, size) in images.items():
        if key in twice:
            why = "is there twice; write the tar again with a key of its own for every image"
            split.problems.append(Note(f"{shard}/{name}", why))
        elif labels.get(key, -1) < 0:
            why = f"has no class: neither a number in {key}.cls nor a label in {key}.json"
            split.problems.append(Note(f"{shard}/{name}", why))
        else:
            split.images.append(StoredImage(name, labels[key], size, shard=shard, offset=offset))


def _add_parquet(split: Split, shard: str) -> tuple[str, ...]:
    """Add the images of a parquet file to a split; returns the class names, () if it has none."""
    rows, names = parquet.read_rows(split.root / shard)
    for name, label, size, offset in rows:
        if label is None:
            split.problems.append(Note(f"{shard}/{name}", "has no label"))
        elif abs(label) > _LARGEST:
            split.problems.append(Note(f"{shard}/{name}", f"has label {label}, which is no class"))
        else:
            split.images.append(StoredImage(name, label, size, shard=shard, offset=offset))
    return names


def _members(path: Path, file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of the files of a tar; raises UserError where it is cut off."""
    end = path.stat().st_size
    offset = 0
    while header := os.pread(file.fileno(), tarfile.BLOCKSIZE, offset):
        if header == bytes(tarfile.BLOCKSIZE):
            return
        # A plain header is parsed here, ten times as fast as tarfile does it.
        if header[156:157] in b"0\0" and header[257:262] == b"ustar" and header[124] < 0x80:
            if int(header[148:156].strip(b" \0") or b"0", 8) != sum(header[:148]) + 256 + sum(
                header[156:]
            ):
                raise UserError(f"{path} is cut off or damaged: download it again")
            size = int(header[124:136].strip(b" \0") or b"0", 8)
            name = header[:100].rstrip(b"\0").decode("utf-8", "surrogateescape")
            prefix = header[345:500].partition(b"\0")[0] if header[257:265] != b"ustar  \0" else b""
            name = f"{prefix.decode('utf-8', 'surrogateescape')}/{name}" if prefix else name
            start, regular = offset + tarfile.BLOCKSIZE, True
        else:  # a link, a folder, a long name, or no header at all
            file.seek(offset)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                info = tar.next()
            if info is None:
                break
            name, size, start, regular = info.name, info.size, info.offset_data, info.isreg()
            size = size if regular else 0
        if start + size > end:
            raise UserError(f"{path} is cut off in {name}: download it again")
        if regular:
            yield name, start, size
        offset = start + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    raise UserError(f"{path} is cut off or damaged: download it again")


def _label(kind: str, content: bytes) -> int | None:
    """Return the label in a .cls or .json file, or None if it has none."""
    try:
        label = int(content if kind == "cls" else strict_json.loads(content)["label"])
        return label if abs(label) <= _LARGEST else None
    except (ValueError, KeyError, TypeError):
        return None
