"""Every split of a data set on disk, opened even where training would refuse it."""

from dataclasses import dataclass, field
from pathlib import Path

from imagenet_jax.data.folder import LayoutSource
from imagenet_jax.data.recognize import recognize
from imagenet_jax.data.sources import Source, open_tfds
from imagenet_jax.data.walk import Note
from imagenet_jax.doctor.findings import Finding
from imagenet_jax.errors import UserError, one_line, reading_files
from imagenet_jax.markup import printable


@dataclass
class DataSet:
    """A data set.

    Attributes:
      path: its directory.
      name: such as "imagenet2012".
      layout: "tfds", or the name of a `Layout`.
      splits: name -> records.
      findings: what opening it brought to light.
    """

    path: Path
    name: str
    layout: str
    splits: dict[str, Source] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


@reading_files()
def open_splits(path: Path) -> DataSet:
    """Raises UserError where there is no data set or it cannot be opened."""
    if not path.is_dir():
        raise UserError(f"{path} is not a directory; give one that `prepare` wrote, or a folder")
    if (path / "dataset_info.json").is_file():
        return _open_tfds(path)
    layout = recognize(path)
    splits = {split: find() for split, find in layout.splits.items()} if layout else {}
    if not layout or not any(split.class_names or split.problems for split in splits.values()):
        found = [f"; {name}: {reason}" for name, reason in (layout.left_out if layout else [])]
        raise UserError(
            f"no data in {path}: looked for dataset_info.json (a tfds directory), "
            "train/CLASS/*.JPEG, val/CLASS/*.JPEG or CLASS/*.JPEG, tars and parquet files"
            + "".join(found)
        )
    data = DataSet(path, path.name, layout.name)
    data.findings = [_ignored("", note) for note in layout.left_out]
    for name, split in splits.items():
        data.findings += [_ignored(name, note) for note in split.left_out]
        data.findings += [
            Finding("unreadable", name, printable(note.name), note.reason)
            for note in split.problems
        ]
        data.splits[name] = LayoutSource(split)
    if "train" in splits and "validation" not in splits:
        data.findings.append(Finding("no_validation", "", "validation", ""))
    return data


def _ignored(split: str, note: Note) -> Finding:
    return Finding("ignored_file", split, printable(note.name), note.reason)


def _open_tfds(path: Path) -> DataSet:
    import tensorflow_datasets as tfds

    try:
        info = tfds.builder_from_directory(str(path)).info
        name, splits = info.name, list(info.splits)
    except Exception as e:
        raise UserError(f"{path} is not a readable tfds directory: {one_line(e)}") from e
    if not splits:
        raise UserError(f"{path} has no splits; prepare it again")
    return DataSet(path, name, "tfds", {split: open_tfds(path, split) for split in splits})
