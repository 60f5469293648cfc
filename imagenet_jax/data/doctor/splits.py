"""Every split of a data set on disk, opened even where training would refuse it."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from imagenet_jax.data.doctor.findings import Finding, printable
from imagenet_jax.data.folder import IMAGE_SUFFIXES, FolderSource
from imagenet_jax.data.sources import Source, open_tfds
from imagenet_jax.errors import UserError

_FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}


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


def open_splits(path: Path) -> DataSet:
    """Raises UserError where there is no data set or it cannot be opened."""
    if not path.is_dir():
        raise UserError(f"{path} is not a directory; give one that `prepare` wrote, or a folder")
    if (path / "dataset_info.json").is_file():
        return _open_tfds(path)
    data = DataSet(path, path.name, "folder")
    for split, names in _FOLDERS.items():
        # As in `open_folder`, the first that is there counts.
        root = next((path / name for name in names if (path / name).is_dir()), None)
        if root:
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
            f"{path} is not a readable tfds directory: {printable(str(e))[:300]}"
        ) from e
    if not splits:
        raise UserError(f"{path} has no splits; prepare it again")
    return DataSet(path, name, "tfds", {split: open_tfds(path, split) for split in splits})


def _list_folder(root: Path, split: str, findings: list[Finding]) -> FolderSource:
    """As `open_folder`, but a class without images is kept, and what it passes over is told."""
    files: list[tuple[str, int, int]] = []
    classes: list[str] = []
    for entry in sorted(os.scandir(root), key=lambda e: e.name):
        if not entry.is_dir():
            findings.append(Finding("ignored_file", split, printable(entry.name), "in no class"))
            continue
        label = len(classes)
        classes.append(printable(entry.name))
        for file in sorted(os.scandir(entry), key=lambda e: e.name):
            name = f"{entry.name}/{file.name}"
            if not file.name.lower().endswith(IMAGE_SUFFIXES):
                findings.append(Finding("ignored_file", split, printable(name), "no image suffix"))
            elif printable(name) != name and not name.isprintable():
                findings.append(Finding("unreadable", split, printable(name), "not a UTF-8 name"))
            else:
                files.append((name, label, 0))
    return FolderSource(root, tuple(classes), files)
