"""Opens the official ImageNet archives as a data set to prepare. They are not unpacked.

The labels of the validation images are in the development kit or in a separate file.
"""

import io
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from imagenet_jax.data.classes import imagenet_wnids
from imagenet_jax.data.image_files import StoredImage, read_lines
from imagenet_jax.data.shard_files import Member, read_tar_members
from imagenet_jax.data.workers import Pool
from imagenet_jax.errors import UserError, reading_files
from imagenet_jax.prepare.prepare import Dataset
from imagenet_jax.prepare.shards import SplitInput, order_images
from imagenet_jax.progress import ProgressReporter

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_TRUTH, _META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"  # files of the kit
OFFICIAL = {"train": 1_281_167, "validation": 50_000}  # images
_VERSION = "5.1.0"  # version of tfds's imagenet2012 that has the same content


@reading_files()
def open_archives(tars: Path, labels_file: Path | None) -> Dataset:
    """Return ImageNet from the directory `tars`. Raises UserError if an archive is missing."""
    for name in (TRAIN, VAL):
        if not (tars / name).is_file():
            raise UserError(
                f"--tars={tars} has no {name}; registered users can download it from "
                "https://image-net.org/download-images ('ILSVRC2012')"
            )
    if labels_file and not labels_file.is_file():
        raise UserError(f"--val_labels={labels_file} does not exist")
    files = (tars / TRAIN, tars / VAL, labels_file or tars / DEVKIT)
    stats = [(file, file.stat()) for file in files if file.is_file()]
    return Dataset(
        name="imagenet2012",
        version=_VERSION,
        class_names=imagenet_wnids(),
        description=(
            "ILSVRC 2012, as tfds's imagenet2012: train and validation, images as in the official "
            "archives byte for byte but for CMYK JPEGs and a PNG, which are RGB JPEGs here."
        ),
        source=f"the archives in {tars}",
        identity={"files": [[f.name, s.st_size, s.st_mtime_ns] for f, s in stats]},
        encoding="jpeg",
        scan=lambda pool: _scan(tars, labels_file, pool),
        expected=OFFICIAL,
    )


def _scan(tars: Path, labels_file: Path | None, pool: Pool) -> dict[str, SplitInput]:
    # Scan validation first, so that missing labels are reported before the long scan of the train
    # archive.
    found = _list_members(tars / VAL)
    if not found:
        raise UserError(f"{tars / VAL} has no images")
    labels = _find_labels(tars, labels_file, [member.name for member in found])
    images = [StoredImage(m.name, labels[m.name], m.size, offset=m.offset) for m in found]
    validation = order_images(tars / VAL, "validation", images)
    return {"train": _scan_train(tars / TRAIN, pool), "validation": validation}


def _scan_train(path: Path, pool: Pool) -> SplitInput:
    labels = _labels_by_wnid()
    archives = []
    for member in _list_members(path):
        wnid = member.name.removesuffix(".tar")
        if wnid not in labels or wnid == member.name:
            raise UserError(
                f"{path}: {member.name} is not the archive of one of ImageNet's 1000 classes"
            )
        archives.append((wnid, (path, member)))
    images = []
    with ProgressReporter("scanning the train archive", len(archives)) as reporter:
        for wnid, found in pool.run(_list_members, archives):
            for name, offset, size, _ in found:
                if not re.fullmatch(rf"{wnid}_\d+\.JPEG", name):
                    raise UserError(f"{path}: {wnid}.tar has {name}, not an image of {wnid}")
                images.append(StoredImage(name, labels[wnid], size, offset=offset))
            reporter.advance(1)
    if not images:
        raise UserError(f"{path} has no images")
    return order_images(path, "train", images)


def _list_members(path: Path, within: Member | None = None) -> list[Member]:
    """Return the files of a tar with their base names.

    Raises UserError for links and suspicious names.
    """
    where = f"{path}: {within.name}" if within else str(path)
    members = []
    for member in read_tar_members(path, within):
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            raise UserError(
                f"{where} has a member {member.name!r}, which points out of the archive: refused"
            )
        if not member.regular:
            raise UserError(f"{where}: {member.name} is a link or device, not a file")
        members.append(member._replace(name=name.name))
    return members


def _labels_by_wnid() -> dict[str, int]:
    return {wnid: label for label, wnid in enumerate(imagenet_wnids())}


def _find_labels(tars: Path, labels_file: Path | None, images: Sequence[str]) -> dict[str, int]:
    """Return {image name: label} of the validation images. Raises UserError without labels."""
    if labels_file:
        return read_label_file(labels_file, images)
    if (tars / DEVKIT).is_file():
        return _match_labels(tars / DEVKIT, _read_devkit(tars / DEVKIT), images)
    import tensorflow_datasets as tfds

    shipped = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    raise UserError(
        f"no validation labels: put {DEVKIT} ('Development kit (Task 1 & 2)' on "
        f"https://image-net.org/challenges/LSVRC/2012/2012-downloads.php) into {tars}, or give "
        f"--val_labels=FILE with a WordNet id per line; tfds ships one: --val_labels={shipped}"
    )


def _read_devkit(path: Path) -> list[tuple[int, list[str]]]:
    """Return the lines of the ground truth file in the form of `_match_labels`."""
    from scipy.io import loadmat

    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for info in tar:
                name = PurePosixPath(info.name).name
                if name in (_TRUTH, _META) and (file := tar.extractfile(info)):
                    found[name] = file.read()
    except (tarfile.TarError, OSError, EOFError) as e:
        raise UserError(f"{path} cannot be read ({e}): download it again") from e
    for name in (_TRUTH, _META):
        if name not in found:
            raise UserError(f"{path} has no {name}: is it the kit of tasks 1 & 2 of 2012?")
    try:
        synsets = loadmat(io.BytesIO(found[_META]), squeeze_me=True)["synsets"]
        wnids = {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in synsets.ravel()}
        lines = found[_TRUTH].decode().split()
    except Exception as e:  # scipy raises many types for a damaged file
        raise UserError(f"{path} has an unreadable {_META} or {_TRUTH}: {e}") from e
    # Line i is the label of image i.
    return [
        (i, [f"ILSVRC2012_val_{i:08d}.JPEG", wnids.get(line, line)])
        for i, line in enumerate(lines, 1)
    ]


def read_label_file(path: Path, images: Sequence[str]) -> dict[str, int]:
    """Return labels from "WNID" lines, for the images in sorted order, or "IMAGE WNID" lines."""
    lines = enumerate(read_lines(path), 1)
    return _match_labels(path, [(i, line.split()) for i, line in lines if line.strip()], images)


def _match_labels(
    path: Path, rows: list[tuple[int, list[str]]], images: Sequence[str]
) -> dict[str, int]:
    """Return {image: label} from (line number, [WNID] or [IMAGE, WNID]) of a file."""
    if len(rows) != len(images):
        raise UserError(
            f"{path} has {len(rows)} labels, but there are {len(images)} validation images"
        )
    if all(len(row) == 1 for _, row in rows):
        rows = [(i, [name, *row]) for name, (i, row) in zip(sorted(images), rows, strict=True)]
    known, labels = _labels_by_wnid(), {}
    for i, row in rows:
        if len(row) != 2:
            raise UserError(f"{path} line {i}: every line must be 'WNID', or every 'IMAGE WNID'")
        name, wnid = row
        if wnid not in known:
            raise UserError(f"{path} line {i}: {wnid!r} is not one of ImageNet's 1000 classes")
        labels[name] = known[wnid]
    missing = sorted(set(images) - set(labels))
    if missing:
        raise UserError(f"{path} has no label for {missing[0]} ({len(missing)} are missing)")
    return labels
