"""tfds directories of ArrayRecord files, read and written without TensorFlow.

`tfds.builder_from_directory` can open directories that are written here: they have shards with
tfds's file names, dataset_info.json, features.json and the class names. tfds is imported only when
it is used, because that takes a second.
"""

import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from imagenet_jax.data import Record
from imagenet_jax.errors import UserError, one_line
from imagenet_jax.files import dump_json, hash_texts

# One record per group, so that a random read fetches one image. Compressing the images again would
# save nothing and take a fifth of the preparation time.
WRITER_OPTIONS = "group_size:1,uncompressed"


class ArrayRecordSource:
    """A split of a tfds directory, read directly from its ArrayRecord shards."""

    def __init__(self, name: str, paths: list[str], class_names: tuple[str, ...], fingerprint: str):
        self.name, self.class_names, self.fingerprint = name, class_names, fingerprint
        self._records = ArrayRecordDataSource(paths)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        try:
            record = parse(self._records[index])
        except Exception as e:  # array_record and protobuf raise many types for damaged files
            raise UserError(
                f"{self.name} record {index} cannot be read: {one_line(e)}; a shard is damaged: "
                "prepare it again"
            ) from e
        record["id"] = record["id"] or f"{self.name} record {index}"
        return record

    def labels(self) -> np.ndarray:
        """Return all labels: i32[N]. Reads every record, images included."""
        return np.array([self[i]["label"] for i in range(len(self))], np.int32)


def open_tfds(path: Path, split: str) -> ArrayRecordSource:
    """Open a split of the tfds directory `path` (".../name/version").

    Raises UserError if it is missing, incomplete, or of another format.
    """
    info = read_info(path)
    import tensorflow_datasets as tfds

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
        raise UserError(
            f"{path} lacks {len(missing)} of {len(shards)} shards, such as {missing[0]}; prepare "
            "it again"
        )
    lengths = list(info.splits[split].shard_lengths)
    sizes = [Path(p).stat().st_size for p in shards]
    features_json = (path / "features.json").read_text()
    fingerprint = hash_texts(features_json, split, dump_json([lengths, sizes]), *label.names)
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


def read_info(path: Path) -> Any:
    """Return tfds's description of a directory. Raises UserError if it is not a tfds directory."""
    if not (path / "dataset_info.json").is_file():
        raise UserError(f"{path} is not a tfds directory: it has no dataset_info.json")
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(str(path)).info
    except Exception as e:
        raise UserError(f"{path} is not a readable tfds directory: {one_line(e)}") from e


def write_dataset(
    path: Path,
    splits: dict[str, Iterable[Record]],
    class_names: Sequence[str],
    description: str,
    encoding: str = "jpeg",
) -> None:
    """Write the directory `path` (".../name/version") from records, completely or not at all.

    It is renamed to `path` when it is complete. If another process has created `path` in the
    meantime, that directory is kept.
    """
    name = path.parent.name
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # hosts may share the file system
    part.mkdir()
    try:
        written = {split: _write_shard(part, name, split, some) for split, some in splits.items()}
        write_metadata(part, path.name, description, written, class_names, encoding)
        try:
            part.rename(path)
        except OSError:
            if not path.exists():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_shard(
    directory: Path, name: str, split: str, records: Iterable[Record]
) -> tuple[list[int], int]:
    """Write the only shard of a split. Return ([number of records], number of bytes)."""
    shard = directory / f"{name}-{split}.array_record-00000-of-00001"
    writer = ArrayRecordWriter(str(shard), WRITER_OPTIONS)
    sizes = []
    try:
        for record in records:
            example = serialize(record)
            writer.write(example)
            sizes.append(len(example))
    finally:
        writer.close()
    return [len(sizes)], sum(sizes)


def serialize(record: Record) -> bytes:
    """Return the tf.train.Example that tfds stores for a record."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    feature = example.features.feature
    feature["image"].bytes_list.value.append(record["image"])
    feature["label"].int64_list.value.append(record["label"])
    feature["file_name"].bytes_list.value.append(record["id"].encode())
    return example.SerializeToString(deterministic=True)


def parse(serialized: bytes) -> Record:
    """Return the record of a tf.train.Example. Its id is "" if there is no file name."""
    from tensorflow_datasets.proto import tf_example_pb2

    feature = tf_example_pb2.Example.FromString(serialized).features.feature
    names = feature["file_name"].bytes_list.value if "file_name" in feature else ()
    return {
        "image": feature["image"].bytes_list.value[0],
        "label": feature["label"].int64_list.value[0],
        "id": names[0].decode() if names else "",
    }


def write_metadata(
    directory: Path,
    version: str,
    description: str,
    splits: dict[str, tuple[list[int], int]],
    class_names: Sequence[str],
    encoding: str,
) -> None:
    """Write dataset_info.json, features.json and the class names with tfds.

    Args:
      directory: where to write; its parent folder has the name of the data set.
      splits: split -> (records of each shard, bytes of all shards).
      encoding: "jpeg" or "png", the encoding of the images.
    """
    import tensorflow_datasets as tfds

    def describe(split: str, lengths: list[int], size: int) -> Any:
        template = tfds.core.ShardedFileTemplate(
            template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", split=split,
            data_dir=str(directory), dataset_name=directory.parent.name,
            filetype_suffix="array_record",
        )  # fmt: skip
        return tfds.core.SplitInfo(
            name=split, shard_lengths=lengths, num_bytes=size, filename_template=template
        )

    features = {
        "image": tfds.features.Image(encoding_format=encoding),
        "label": tfds.features.ClassLabel(names=list(class_names)),
        "file_name": tfds.features.Text(),
    }
    tfds.folder_dataset.write_metadata(
        data_dir=str(directory),
        features=tfds.features.FeaturesDict(features),
        split_infos=[describe(split, *written) for split, written in splits.items()],
        version=version,
        description=description,
        check_data=False,  # the check would read a record with TensorFlow
    )
