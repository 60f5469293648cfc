"""Where encoded images come from: records by random access, with a name and a fingerprint."""

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from imagenet_jax import strict_json
from imagenet_jax.data import digits
from imagenet_jax.data.class_order import reorder
from imagenet_jax.data.folder import LayoutSource, open_held_out, open_layout
from imagenet_jax.data.recognize import recognize
from imagenet_jax.data.tfds_format import Record, parse
from imagenet_jax.errors import UserError, expand_user, one_line, reading_files
from imagenet_jax.files import hash_texts


class Source(Protocol):
    """Records of one split. Picklable; reads from several threads at once.

    Attributes:
      name: for messages.
      class_names: label -> name.
      fingerprint: changes when the records or their order do.
    """

    name: str
    class_names: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def labels(self) -> np.ndarray:
        """i32[N]: the label of every record."""
        ...


@reading_files()
def open_source(data: ConfigDict, split: str) -> Source:
    """The source of `config.data` for a split, or a part of one: "train[:99%]", "train[100:]".

    Raises UserError where it is not there, is not what it should be, or is empty.
    """
    split, part = _split_and_part(split)
    kind = data.source
    path = expand_user(data.path)
    if kind == "synthetic":
        source: Source = SyntheticSource(split, **data.synthetic)
    elif kind == "digits":
        if path.parent.name != digits.NAME and not path.exists():
            raise UserError(
                f"config.data.source = 'digits' would be written to config.data.path = "
                f"{data.path!r}, which has another name; give a path that ends in digits/1.0.0"
            )
        try:
            digits.prepare(path)
        except OSError as e:
            raise UserError(f"config.data.path = {data.path!r}: {e.strerror}") from e
        source = open_tfds(path, split)
    elif kind == "tfds" or (kind == "auto" and (path / "dataset_info.json").is_file()):
        source = open_tfds(path, split)
    elif layout := recognize(path):
        source = (
            open_held_out(layout, split, data.holdout)
            if data.holdout
            else open_layout(layout, split)
        )
    else:
        inside = sorted(path.glob("*/dataset_info.json"))
        hint = f"; did you mean {inside[-1].parent}?" if inside else ""
        raise UserError(
            f"no data in config.data.path = {data.path!r}: looked for dataset_info.json (a tfds "
            f"directory), {split}/CLASS/*.JPEG, CLASS/*.JPEG, tars and parquet files; point "
            f"--config.data.path= at one, docs/data.md says how to make it{hint}"
        )
    if data.holdout and not isinstance(source, LayoutSource):
        raise UserError(
            f"config.data.holdout = {data.holdout} is for a folder, and {source.name} is none; use "
            "--config.data.train_split='train[:80%]' --config.data.eval_split='train[80%:]'"
        )
    if part and isinstance(source, LayoutSource):
        _check_slices(source, data, split)
    source = reorder(source, data.class_order)
    if part:
        source = Subset(source, np.arange(*part(len(source))))
    if not len(source):
        raise UserError(f"{source.name} has no images")
    return source


def _check_slices(source: LayoutSource, data: ConfigDict, split: str) -> None:
    """Raise UserError if training and evaluation slice `split` and a class is in one slice only."""
    used = [_split_and_part(text) for text in (data.train_split, data.eval_split)]
    bounds = [part(len(source)) for name, part in used if part and name == split]
    if len(bounds) < 2:
        return
    labels = source.labels()
    train, evaluation = (labels[start:stop] for start, stop in bounds)
    odd = np.setxor1d(train, evaluation)
    if len(odd):
        raise UserError(
            f"config.data.train_split = {data.train_split!r} and config.data.eval_split = "
            f"{data.eval_split!r}: {len(odd):,} classes of {source.name} are in only one of both, "
            f"first {source.class_names[odd[0]]!r}; records sorted by class cannot be sliced, use "
            "--config.data.holdout=0.05 without slices"
        )


def _split_and_part(text: str) -> tuple[str, Callable[[int], tuple[int, int]] | None]:
    """("train", n -> (start, stop)) of "train[10%:]"; the bounds round down, as in tfds."""
    match = re.fullmatch(r"([^\[\]]+)(?:\[(\d+%?)?:(\d+%?)?\])?", text)
    if not match:
        raise UserError(f"split {text!r}: write a name, name[:90%], name[90%:] or name[100:200]")
    name, low, high = match.groups()
    if low is None and high is None:
        return name, None

    def bound(mark: str | None, default: int, length: int) -> int:
        if mark is None:
            return default
        number = int(mark.rstrip("%"))
        return min(length, number * length // 100 if mark.endswith("%") else number)

    return name, lambda n: (bound(low, 0, n), bound(high, n, n))


class Subset:
    """The records of a source at some indices."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray):
        self._source, self._indices = source, np.asarray(indices, np.int64)
        self.name = f"{source.name} ({len(self._indices)} of {len(source)} records)"
        self.class_names = source.class_names
        self.class_numbers = getattr(source, "class_numbers", ())
        self.fingerprint = hash_texts(source.fingerprint, self._indices.tobytes().hex())

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        return self._source[int(self._indices[index])]

    def labels(self) -> np.ndarray:
        return self._source.labels()[self._indices]


class ArrayRecordSource:
    """A split of a tfds directory, read from its ArrayRecord shards without tfds in between."""

    def __init__(self, name: str, paths: list[str], class_names: tuple[str, ...], fingerprint: str):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.name, self.class_names, self.fingerprint = name, class_names, fingerprint
        self._records = ArrayRecordDataSource(paths)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        try:
            image, label, file_name = parse(self._records[index])
        except Exception as e:  # array_record and protobuf tell damage by exceptions of many types
            raise UserError(
                f"{self.name} record {index} cannot be read: {one_line(e)}; a shard is damaged, "
                "prepare it again"
            ) from e
        return {"image": image, "label": label, "id": file_name or f"{self.name} record {index}"}

    def labels(self) -> np.ndarray:
        """Reads every record: they keep their labels beside their images."""
        return np.array([self[i]["label"] for i in range(len(self))], np.int32)


def open_tfds(path: Path, split: str) -> ArrayRecordSource:
    """A split of the tfds directory `path` (".../name/version")."""
    if not (path / "dataset_info.json").is_file():
        raise UserError(f"{path} is not a tfds directory: it has no dataset_info.json")
    import tensorflow_datasets as tfds

    try:
        info = tfds.builder_from_directory(str(path)).info
    except Exception as e:
        raise UserError(f"{path} is not a readable tfds directory: {one_line(e)}") from e
    if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{path} holds {info.file_format.value}, which needs TensorFlow to read; convert it "
            f"with tfds: `tfds convert_format --dataset_version_dir={path} "
            "--out_file_format=array_record --out_dir=NEW_DIRECTORY`"
        )
    if split not in info.splits:
        raise UserError(f"{path} has no split {split!r}; it has {', '.join(info.splits)}")
    features = dict(info.features)
    label = features.get("label")
    if "image" not in features or not isinstance(label, tfds.features.ClassLabel):
        raise UserError(f"{path} has no features 'image' and 'label' (a ClassLabel)")
    shards = [str(p) for p in info.splits[split].filepaths]
    missing = [p for p in shards if not Path(p).is_file()]
    if missing:
        raise UserError(f"{path} lacks {len(missing)} of {len(shards)} shards, first {missing[0]}")
    lengths = list(info.splits[split].shard_lengths)
    sizes = [Path(p).stat().st_size for p in shards]
    fingerprint = hash_texts(
        (path / "features.json").read_text(),
        split,
        strict_json.dumps([lengths, sizes]),
        *label.names,
    )
    try:
        source = ArrayRecordSource(f"{path}:{split}", shards, tuple(label.names), fingerprint)
    except Exception as e:
        raise UserError(f"a shard of {path} cannot be read: {one_line(e)}") from e
    if len(source) != sum(lengths):
        raise UserError(
            f"{path} should have {sum(lengths)} records in {split!r} but has {len(source)}: "
            "a shard is damaged; prepare it again"
        )
    return source


class SyntheticSource:
    """JPEGs of smooth random colours, a few distinct ones over and over: for benchmarks."""

    _DISTINCT = 16

    def __init__(self, split: str, images: int, classes: int, height: int, width: int):
        self.name = f"synthetic {split}"
        self.class_names = tuple(f"class {i}" for i in range(classes))
        self.fingerprint = hash_texts(split, str(images), str(classes), str(height), str(width))
        self._length = images
        rng = np.random.default_rng(0)
        self._encoded = [self._draw(rng, height, width) for _ in range(self._DISTINCT)]

    @staticmethod
    def _draw(rng: np.random.Generator, height: int, width: int) -> bytes:
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 6, (height, width, 3))  # as much detail as a photograph
        pixels = np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        return file.getvalue()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        label = index % len(self.class_names)
        return {
            "image": self._encoded[index % self._DISTINCT],
            "label": label,
            "id": f"{self.name} {index}",
        }

    def labels(self) -> np.ndarray:
        return np.arange(self._length, dtype=np.int32) % len(self.class_names)
