"""Reads shards: members of tar archives, and images in parquet files.

Parquet files are those of Hugging Face: a column of encoded images and one of labels, in row groups
of 100 rows. Up to 1 GiB of recently used row groups stays in memory per process. If that is enough
for one row group per thread, threads that read ranges of rows in order read each row group from
disk only once.
"""

import os
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from imagenet_jax.errors import UserError, one_line
from imagenet_jax.files import parse_json

_IMAGES, _LABELS = ("image", "img", "jpg"), ("label", "labels", "cls")  # names of columns
_CACHE_BYTES = 2**30  # maximum size of the row groups in memory
_ROW_BITS = 32  # an offset is (row group, row in it)

# Threads that need the same row group wait until one has read it; other threads continue.
_locks = [threading.Lock() for _ in range(64)]
# Row group -> its column of images, most recently used last.
_cache: OrderedDict[tuple[str, int], Any] = OrderedDict()
_cache_lock = threading.Lock()


class Member(NamedTuple):
    """A file, link or device in a tar."""

    name: str  # path in the archive
    offset: int  # of its bytes in the file on disk
    size: int  # bytes
    regular: bool = True  # whether it is a file


def read_tar_members(path: Path, within: Member | None = None) -> Iterator[Member]:
    """Yield everything but folders of the tar `path`, or of the tar that is its member `within`.

    Raises UserError if it is not a tar archive, is damaged, or ends early.
    """
    where = f"{path}: {within.name}" if within else str(path)
    damaged = UserError(f"{where} is cut off or damaged: download it again")
    try:
        with path.open("rb") as file:
            offset = within.offset if within else 0
            end = within.offset + within.size if within else path.stat().st_size
            while offset < end:
                header = os.pread(file.fileno(), tarfile.BLOCKSIZE, offset)
                if header == bytes(tarfile.BLOCKSIZE):
                    return
                member = _parse_header(header, offset)
                if member is None:  # a link, a folder, a long name, or no header at all
                    file.seek(offset)
                    with tarfile.open(fileobj=file, mode="r:") as tar:
                        info = tar.next()
                    if info is None:
                        raise damaged
                    size = info.size if info.isreg() else 0
                    member = Member(info.name, info.offset_data, size, info.isreg())
                    if info.isdir():
                        offset = member.offset
                        continue
                elif _octal(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
                    raise damaged
                if member.offset + member.size > end:
                    raise UserError(f"{where} is cut off in {member.name}: download it again")
                yield member
                blocks = -(-member.size // tarfile.BLOCKSIZE)
                offset = member.offset + blocks * tarfile.BLOCKSIZE
    except tarfile.TarError as e:
        raise UserError(
            f"{where} is not a tar archive or is cut off ({e}): download it again"
        ) from e
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}") from e
    raise damaged  # a tar ends with a block of zeros


def _parse_header(header: bytes, offset: int) -> Member | None:
    """Parse the header of a regular file, ten times as fast as tarfile. None for other entries."""
    if header[156:157] not in (b"0", b"\0") or header[257:262] != b"ustar" or header[124] >= 0x80:
        return None
    name = header[:100].rstrip(b"\0").decode("utf-8", "surrogateescape")
    # GNU's format has other fields in place of the prefix.
    prefix = header[345:500].partition(b"\0")[0] if header[257:265] != b"ustar  \0" else b""
    if prefix:
        name = f"{prefix.decode('utf-8', 'surrogateescape')}/{name}"
    return Member(name, offset + tarfile.BLOCKSIZE, _octal(header[124:136]))


def _octal(field: bytes) -> int:
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return -1  # differs from any sum of bytes, so that the header counts as damaged


def read_parquet_image(path: Path, offset: int) -> bytes:
    """Return the encoded image at an offset from `read_parquet_rows`.

    Raises UserError if it cannot be read.
    """
    key = (str(path), offset >> _ROW_BITS)
    with _locks[hash(key) % len(_locks)]:
        with _cache_lock:
            column = _cache.get(key)
            if column is not None:
                _cache.move_to_end(key)
        if column is None:
            column = _read_row_group(*key)
            with _cache_lock:
                _cache[key] = column
                while len(_cache) > 1 and sum(c.nbytes for c in _cache.values()) > _CACHE_BYTES:
                    _cache.popitem(last=False)
    encoded = column[offset & (2**_ROW_BITS - 1)].as_py()
    if not isinstance(encoded, bytes):
        raise UserError(f"{path} holds no encoded image in row group {key[1]}; write it again")
    return encoded


def _read_row_group(path: str, group: int) -> Any:
    """Return the column of encoded images of a row group."""
    import pyarrow.compute

    with _open_parquet(Path(path)) as file:
        name = _find_column(file, _IMAGES, path)
        try:
            column = file.read_row_group(group, columns=[name], use_threads=False)[name]
        except (OSError, pyarrow.ArrowException) as e:
            raise UserError(f"{path} is damaged: {one_line(e)}") from e
        if pyarrow.types.is_struct(column.type):
            column = pyarrow.compute.struct_field(column, "bytes")
    return column


class Row(NamedTuple):
    """An image in a parquet file; its size is approximate."""

    name: str  # its path if the file has a column of paths, else its number
    label: int | None
    size: int  # bytes
    offset: int  # for `read_parquet_image`


def read_parquet_rows(path: Path) -> tuple[list[Row], tuple[str, ...]]:
    """Return the rows of a file, without reading images, and its class names or ()."""
    import pyarrow

    with _open_parquet(path) as file:
        image = _find_column(file, _IMAGES, str(path))
        label = _find_column(file, _LABELS, str(path))
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
                i = len(rows)
                rows.append(Row(names[i], labels[i], size, group << _ROW_BITS | row))
        try:  # Hugging Face's metadata
            about = parse_json((file.schema_arrow.metadata or {})[b"huggingface"])
            return rows, tuple(about["info"]["features"][label]["names"])
        except (KeyError, TypeError, ValueError):
            return rows, ()


def _open_parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as e:
        raise UserError(f"{path} is not a parquet file, or is truncated: {one_line(e)}") from e


def _find_column(file: Any, wanted: tuple[str, ...], path: str) -> str:
    names = file.schema_arrow.names
    for name in wanted:
        if name in names:
            return name
    raise UserError(
        f"{path} has no column {' or '.join(wanted)}; it has {', '.join(names)}: rename one"
    )
