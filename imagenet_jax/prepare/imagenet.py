"""The official ImageNet archives as a data set to prepare."""

import re
from pathlib import Path
from typing import Any

from imagenet_jax.data.imagenet_classes import wnids
from imagenet_jax.data.pool import Pool
from imagenet_jax.data.stored_image import StoredImage
from imagenet_jax.errors import UserError, reading_files
from imagenet_jax.prepare import archives, index, val_labels
from imagenet_jax.prepare.dataset import Dataset
from imagenet_jax.prepare.progress import Reporter

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
OFFICIAL = {"train": 1_281_167, "validation": 50_000}  # images
_VERSION = "5.1.0"  # tfds's imagenet2012, which this is the same as


@reading_files()
def dataset(tars: Path, labels_file: Path | None) -> Dataset:
    """ImageNet from the directory `tars`.

    Raises UserError where an archive is missing.
    """
    for name in (TRAIN, VAL):
        if not (tars / name).is_file():
            raise UserError(
                f"--tars={tars} has no {name}; https://image-net.org/download-images gives it "
                "to registered users ('ILSVRC2012')"
            )
    if labels_file and not labels_file.is_file():
        raise UserError(f"--val_labels={labels_file} does not exist")
    files = [tars / TRAIN, tars / VAL, labels_file or tars / val_labels.DEVKIT]
    return Dataset(
        name="imagenet2012",
        version=_VERSION,
        class_names=wnids(),
        description=(
            "ILSVRC 2012, as tfds's imagenet2012: train and validation, images as in the official "
            "archives byte for byte but for CMYK JPEGs and a PNG, which are RGB JPEGs here."
        ),
        source=f"the archives in {tars}",
        identity={"files": [_identity(file) for file in files if file.is_file()]},
        encoding="jpeg",
        scan=lambda pool: _scan(tars, labels_file, pool),
    )


def _identity(file: Path) -> list[Any]:
    stat = file.stat()
    return [file.name, stat.st_size, stat.st_mtime_ns]


def _scan(tars: Path, labels_file: Path | None, pool: Pool) -> dict[str, index.Index]:
    # Validation first: missing labels should show before the long look through the train archive.
    found = list(archives.members(tars / VAL))
    if not found:
        raise UserError(f"{tars / VAL} has no images")
    labels = val_labels.find(tars, labels_file, [member.name for member in found])
    entries = [StoredImage(m.name, labels[m.name], m.size, offset=m.offset) for m in found]
    validation = index.build(tars / VAL, "validation", entries)
    return {"train": _scan_train(tars / TRAIN, pool), "validation": validation}


def _scan_train(path: Path, pool: Pool) -> index.Index:
    classes = {wnid: label for label, wnid in enumerate(wnids())}
    inner = []
    for member in archives.members(path):
        wnid = member.name.removesuffix(".tar")
        if wnid not in classes or wnid == member.name:
            raise UserError(
                f"{path}: {member.name} is not the archive of one of ImageNet's 1000 classes"
            )
        inner.append((member, classes[wnid]))
    entries = []
    with Reporter("looking through the train archive", len(inner), in_bytes=False) as reporter:
        calls = (((member, label), (path, member)) for member, label in inner)
        for (member, label), found in pool.run(_class_members, calls):
            wnid = member.name.removesuffix(".tar")
            for name, offset, size in found:
                if not re.fullmatch(rf"{wnid}_\d+\.JPEG", name):
                    raise UserError(f"{path}: {member.name} has {name}, not an image of {wnid}")
                entries.append(StoredImage(name, label, size, offset=offset))
            reporter.advance(1)
    if not entries:
        raise UserError(f"{path} has no images")
    return index.build(path, "train", entries)


def _class_members(path: Path, within: archives.Member) -> list[archives.Member]:
    return list(archives.members(path, within))
