"""The official ImageNet archives as a data set to prepare; they are read without unpacking."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from imagenet_jax.data.classes import imagenet_wnids
from imagenet_jax.data.image_files import StoredImage
from imagenet_jax.data.shard_files import Member, read_tar_members
from imagenet_jax.data.workers import Pool
from imagenet_jax.errors import UserError, reading_files
from imagenet_jax.prepare import val_labels
from imagenet_jax.prepare.prepare import Dataset
from imagenet_jax.prepare.shards import SplitInput, order_images
from imagenet_jax.progress import ProgressReporter

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
OFFICIAL = {"train": 1_281_167, "validation": 50_000}  # images
_VERSION = "5.1.0"  # of tfds's imagenet2012, to which the result is equal


@reading_files()
def open_archives(tars: Path, labels_file: Path | None) -> Dataset:
    """Return ImageNet from the directory `tars`. Raises UserError if an archive is missing."""
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
        class_names=imagenet_wnids(),
        description=(
            "ILSVRC 2012, as tfds's imagenet2012: train and validation, images as in the official "
            "archives byte for byte but for CMYK JPEGs and a PNG, which are RGB JPEGs here."
        ),
        source=f"the archives in {tars}",
        identity={"files": [_identify(file) for file in files if file.is_file()]},
        encoding="jpeg",
        scan=lambda pool: _scan(tars, labels_file, pool),
        expected=OFFICIAL,
    )


def _identify(file: Path) -> list[Any]:
    stat = file.stat()
    return [file.name, stat.st_size, stat.st_mtime_ns]


def _scan(tars: Path, labels_file: Path | None, pool: Pool) -> dict[str, SplitInput]:
    # Validation first: missing labels are reported before the long scan of the train archive.
    found = list(_read_members(tars / VAL))
    if not found:
        raise UserError(f"{tars / VAL} has no images")
    labels = val_labels.find_labels(tars, labels_file, [member.name for member in found])
    images = [StoredImage(m.name, labels[m.name], m.size, offset=m.offset) for m in found]
    validation = order_images(tars / VAL, "validation", images)
    return {"train": _scan_train(tars / TRAIN, pool), "validation": validation}


def _scan_train(path: Path, pool: Pool) -> SplitInput:
    classes = {wnid: label for label, wnid in enumerate(imagenet_wnids())}
    archives = []
    for member in _read_members(path):
        wnid = member.name.removesuffix(".tar")
        if wnid not in classes or wnid == member.name:
            raise UserError(
                f"{path}: {member.name} is not the archive of one of ImageNet's 1000 classes"
            )
        archives.append((wnid, member))
    images = []
    with ProgressReporter("scanning the train archive", len(archives)) as reporter:
        calls = ((wnid, (path, member)) for wnid, member in archives)
        for wnid, found in pool.run(_list_members, calls):
            for name, offset, size, _ in found:
                if not re.fullmatch(rf"{wnid}_\d+\.JPEG", name):
                    raise UserError(f"{path}: {wnid}.tar has {name}, not an image of {wnid}")
                images.append(StoredImage(name, classes[wnid], size, offset=offset))
            reporter.advance(1)
    if not images:
        raise UserError(f"{path} has no images")
    return order_images(path, "train", images)


def _list_members(path: Path, within: Member) -> list[Member]:
    return list(_read_members(path, within))


def _read_members(path: Path, within: Member | None = None) -> Iterator[Member]:
    """Yield the files of a tar by their base names; UserError for links and suspicious names."""
    where = f"{path}: {within.name}" if within else str(path)
    for member in read_tar_members(path, within):
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            raise UserError(
                f"{where} has a member {member.name!r}, which points out of the archive: refused"
            )
        if not member.regular:
            raise UserError(f"{where}: {member.name} is a link or device, not a file")
        yield member._replace(name=name.name)
