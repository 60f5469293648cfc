"""The class of each of ImageNet's validation images: from the development kit or from a file."""

import io
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

from imagenet_jax.data.classes import imagenet_wnids
from imagenet_jax.data.image_files import read_lines
from imagenet_jax.errors import UserError

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_META = "data/meta.mat"


def find_labels(tars: Path, file: Path | None, images: Sequence[str]) -> dict[str, int]:
    """Return {image name: label} of the validation images `images`.

    Args:
      tars: directory that may hold the development kit.
      file: --val_labels, used instead of the kit.

    Raises UserError if there are no labels or they do not match the images.
    """
    if file:
        return read_label_file(file, images)
    if (tars / DEVKIT).is_file():
        return _read_devkit(tars / DEVKIT, images)
    import tensorflow_datasets as tfds

    shipped = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    raise UserError(
        f"no validation labels: put {DEVKIT} ('Development kit (Task 1 & 2)' on "
        f"https://image-net.org/challenges/LSVRC/2012/2012-downloads.php) into {tars}, or give "
        f"--val_labels=FILE with a WordNet id per line; tfds ships one: --val_labels={shipped}"
    )


def _read_devkit(path: Path, images: Sequence[str]) -> dict[str, int]:
    """Return labels of the ground truth file: line i is for ILSVRC2012_val_<i, 8 digits>.JPEG."""
    from scipy.io import loadmat

    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for info in tar:
                for wanted in (_TRUTH, _META):
                    if info.isreg() and f"/{info.name}".endswith(f"/{wanted}"):
                        opened = tar.extractfile(info)
                        assert opened  # a regular file
                        found[wanted] = opened.read()
    except (tarfile.TarError, OSError, EOFError) as e:
        raise UserError(f"{path} cannot be read ({e}): download it again") from e
    for wanted in (_TRUTH, _META):
        if wanted not in found:
            raise UserError(f"{path} has no {wanted}: is it the kit of tasks 1 & 2 of 2012?")
    try:
        synsets = loadmat(io.BytesIO(found[_META]), squeeze_me=True)["synsets"]
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets.ravel()}
        lines = [int(line) for line in found[_TRUTH].split()]
    except Exception as e:  # scipy raises many types for a damaged file
        raise UserError(f"{path} has an unreadable {_META} or {_TRUTH}: {e}") from e
    _check_count(path, len(lines), len(images))
    labels = {}
    for name in images:
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
        line = int(match[1]) if match else 0
        if not 1 <= line <= len(lines):
            raise UserError(f"{path} has no label for {name}")
        number = lines[line - 1]
        labels[name] = _find_label(path, line, wnids.get(number, str(number)))
    return labels


def read_label_file(path: Path, images: Sequence[str]) -> dict[str, int]:
    """Return labels from "WNID" lines, for the images in sorted order, or "IMAGE WNID" lines."""
    rows = [(i, line.split()) for i, line in enumerate(read_lines(path), 1) if line.strip()]
    _check_count(path, len(rows), len(images))
    if all(len(row) == 1 for _, row in rows):
        pairs = zip(sorted(images), rows, strict=True)
        return {name: _find_label(path, i, row[0]) for name, (i, row) in pairs}
    labels = {}
    for i, row in rows:
        if len(row) != 2:
            raise UserError(f"{path} line {i}: write 'WNID' or 'IMAGE WNID', in every line alike")
        labels[row[0]] = _find_label(path, i, row[1])
    missing = sorted(set(images) - set(labels))
    if missing:
        raise UserError(f"{path} has no label for {missing[0]} ({len(missing)} are missing)")
    return labels


def _check_count(path: Path, lines: int, images: int) -> None:
    if lines != images:
        raise UserError(f"{path} has {lines} labels, but there are {images} validation images")


def _find_label(path: Path, line: int, wnid: str) -> int:
    try:
        return imagenet_wnids().index(wnid)
    except ValueError:
        raise UserError(
            f"{path} line {line}: {wnid!r} is not one of ImageNet's 1000 classes"
        ) from None
