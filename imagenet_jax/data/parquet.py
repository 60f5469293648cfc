"""Images in parquet files, as Hugging Face stores them: a column of encoded bytes, one of labels.

A file is read by row groups, of 100 rows as Hugging Face writes them. Those read last stay in
memory, up to 1 GiB a process, so threads that each read a range in order take a row group from the
disk once as long as one row group of every thread fits.
"""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

from imagenet_jax import strict_json
from imagenet_jax.errors import UserError, one_line

_IMAGES, _LABELS = ("image", "img", "jpg"), ("label", "labels", "cls")
_KEPT_BYTES = 2**30  # of row groups in memory
_ROW_BITS = 32  # an offset is (row group, row in it)

# Threads that want one row group wait for the first to read it; others go on.
_locks = [threading.Lock() for _ in range(64)]
# Row group -> (column, bytes); the one used last is last.
_kept: OrderedDict[tuple[str, int], tuple[Any, int]] = OrderedDict()
_kept_lock = threading.Lock()


def read_row(path: Path, offset: int) -> bytes:
    """The encoded image at an offset; raises UserError where the file cannot be read."""
    key = (str(path), offset >> _ROW_BITS)
    with _locks[hash(key) % len(_locks)]:
        with _kept_lock:
            column, _ = _kept.get(key, (None, 0))
            if column is not None:
                _kept.move_to_end(key)
        if column is None:
            column = _read_group(*key)
            with _kept_lock:
                _kept[key] = column, column.nbytes
                while len(_kept) > 1 and sum(size for _, size in _kept.values()) > _KEPT_BYTES:
                    _kept.popitem(last=False)
    encoded = column[offset & (2**_ROW_BITS - 1)].as_py()
    if not isinstance(encoded, bytes):
        raise UserError(f"{path} holds no encoded image in row group {key[1]}; write it again")
    return encoded


def _read_group(path: str, group: int) -> Any:
    """The column of encoded images of a row group."""
    import pyarrow.compute

    with _open(Path(path)) as file:
        name = _column(file, _IMAGES, path)
        try:
            column = file.read_row_group(group, columns=[name], use_threads=False)[name]
        except (OSError, pyarrow.ArrowException) as e:
            raise UserError(f"{path} is damaged: {one_line(e)}") from e
        if pyarrow.types.is_struct(column.type):
            column = pyarrow.compute.struct_field(column, "bytes")
    return column


class Row(NamedTuple):
    """An image before it is read: its name, label (None: it has none), about its bytes, offset."""

    name: str
    label: int | None
    size: int
    offset: int


def read_rows(path: Path) -> tuple[list[Row], tuple[str, ...]]:
    """(rows, class names or ()) of a file: labels and, where they are there, names, not images."""
    import pyarrow

    with _open(path) as file:
        image, label = _column(file, _IMAGES, str(path)), _column(file, _LABELS, str(path))
        columns = [file.schema.column(i).path for i in range(len(file.schema))]
        named = f"{image}.path" in columns
        kind = file.schema_arrow.field(label).type
        if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_null(kind)):
            raise UserError(
                f"{path}: column {label} has type {kind}; labels are integers from 0: convert it"
            )
        table = file.read(columns=[label, *([f"{image}.path"] if named else [])])
        labels = table[label].to_pylist()
        names = [row and row["path"] for row in table[image].to_pylist()] if named else []
        if None in names or len(set(names)) != len(labels):
            names = list(map(str, range(len(labels))))
        rows: list[Row] = []
        for group in range(file.metadata.num_row_groups):
            about = file.metadata.row_group(group)
            size = about.total_byte_size // max(1, about.num_rows)
            for row in range(about.num_rows):
                at = len(rows)
                rows.append(Row(names[at], labels[at], size, group << _ROW_BITS | row))
        return rows, _class_names(file, label)


def _open(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as e:
        raise UserError(f"{path} is not a parquet file, or is truncated: {one_line(e)}") from e


def _column(file: Any, wanted: tuple[str, ...], path: str) -> str:
    names = file.schema_arrow.names
    for name in wanted:
        if name in names:
            return name
    raise UserError(
        f"{path} has no column {' or '.join(wanted)}; it has {', '.join(names)}: rename one"
    )


def _class_names(file: Any, label: str) -> tuple[str, ...]:
    """The names that Hugging Face's metadata gives the labels."""
    try:
        about = strict_json.loads((file.schema_arrow.metadata or {})[b"huggingface"])
        return tuple(about["info"]["features"][label]["names"])
    except (KeyError, TypeError, ValueError):
        return ()
