"""Every split of a data set on disk, opened even where training would refuse it."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from imagenet_jax.data.doctor.findings import Finding, printable
from imagenet_jax.data.folder import IMAGE_SUFFIXES, FolderSource, is_utf8, split_folder
from imagenet_jax.data.sources import Source, open_tfds
from imagenet_jax.errors import UserError, reading_files


@dataclass
class DataSet:
    """A data set.

    Attributes:
      path: its directory.
      name: such as "imagenet2012".
      storage: "tfds" or "folder".
      splits: name -> records.
      findings: what opening it brought to light.
    """

    path: Path
    name: str
    storage: str
    splits: dict[str, Source] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


@reading_files()
def open_splits(path: Path) -> DataSet:
    """Raises UserError where there is no data set or it cannot be opened."""
    if not path.is_dir():
        raise UserError(f"{path} is not a directory; give one that `prepare` wrote, or a folder")
    if (path / "dataset_info.json").is_file():
        return _open_tfds(path)
    data = DataSet(path, path.name, "folder")
    for split in ("train", "validation", "test"):
        if root := split_folder(path, split):
            data.splits[split] = _list_folder(root, split, data.findings)
    if not data.splits and any(path.glob("*/*")):  # classes without splits, as for a hold-out
        data.splits["all"] = _list_folder(path, "all", data.findings)
    if not any(len(source.class_names) for source in data.splits.values()):
        raise UserError(
            f"no data in {path}: looked for dataset_info.json (a tfds directory) and for "
            "train/CLASS/*.JPEG, val/CLASS/*.JPEG or CLASS/*.JPEG (a folder)"
        )
    return data


def _open_tfds(path: Path) -> DataSet:
    import tensorflow_datasets as tfds

    try:
        info = tfds.builder_from_directory(str(path)).info
        name, splits = info.name, list(info.splits)
    except Exception as e:
        raise UserError(
            f"{path} is not a readable tfds directory: {' '.join(str(e).split())[:300]}"
        ) from e
    if not splits:
        raise UserError(f"{path} has no splits; prepare it again")
    return DataSet(path, name, "tfds", {split: open_tfds(path, split) for split in splits})


def _list_folder(root: Path, split: str, findings: list[Finding]) -> FolderSource:
    """As `open_folder`, but a class without images is kept, and what it passes over is told."""
    files: list[tuple[str, int, int]] = []
    classes: list[str] = []

    def found(kind: str, name: str, detail: str) -> None:
        findings.append(Finding(kind, split, printable(name), detail))

    for entry in sorted(os.scandir(root), key=lambda e: e.name):
        if _leads_nowhere(entry):
            found("unreadable", entry.name, "a link to nothing")
            continue
        if not entry.is_dir():
            found("ignored_file", entry.name, "in no class")
            continue
        label = len(classes)
        classes.append(entry.name if is_utf8(entry.name) else printable(entry.name))
        try:
            inside = sorted(os.scandir(entry), key=lambda e: e.name)
        except OSError as e:
            found("unreadable", entry.name, f"cannot be read: {e.strerror}")
            continue
        for file in inside:
            name = f"{entry.name}/{file.name}"
            if Path(file).is_dir():
                found("ignored_file", name, "a folder inside a class folder")
            elif not file.name.lower().endswith(IMAGE_SUFFIXES):
                found("ignored_file", name, "no image suffix")
            elif not is_utf8(name):
                found("unreadable", name, "not a UTF-8 name")
            elif _leads_nowhere(file):
                found("unreadable", name, "a link to nothing")
            else:
                files.append((name, label, 0))
    return FolderSource(root, tuple(classes), files)


def _leads_nowhere(entry: "os.DirEntry[str]") -> bool:
    return entry.is_symlink() and not Path(entry).exists()
