"""Atomic writes, JSON, JSON lines and hashes. All JSON of the package is written and read here.

JSON has no NaN or infinite numbers. They are written as null, and the field "nonfinite_values" of
their object has the value: {"loss": null, "nonfinite_values": {"loss": "nan"}}. The key of a number
in a list is its path from that object, such as "losses/2".
"""

import contextlib
import hashlib
import json
import math
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NONFINITE = "nonfinite_values"


def write_atomically(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write a file that has either its old or its new content at every moment.

    The content goes to a hidden file beside `path`, is flushed to the disk, and is then renamed to
    `path`. If that fails, `path` is unchanged and the hidden file is removed.

    Args:
      content: text (written as UTF-8), bytes, or a function that writes the file to a given path,
        which has the suffix of `path`.

    Raises OSError.
    """
    # The name is random, because two containers may share a directory and a process number.
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}{path.suffix}")
    try:
        if callable(content):
            content(part)
        else:
            part.write_bytes(content.encode() if isinstance(content, str) else content)
        _flush_to_disk(part)
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    with contextlib.suppress(OSError):  # some network file systems cannot flush a directory
        _flush_to_disk(path.parent)


def _flush_to_disk(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def dump_json(value: Any, **options: Any) -> str:
    """Return `value` as JSON that every parser accepts. `options` are passed to `json.dumps`.

    Raises ValueError for a NaN or infinite number outside of an object.
    """
    return json.dumps(encode_nonfinite(value), allow_nan=False, **options)


def parse_json(text: str | bytes) -> Any:
    """Return the value that `dump_json` wrote, including NaN and infinite numbers.

    Also reads the literals NaN and Infinity, which are not JSON. Raises ValueError for other text.
    """
    return json.loads(text, object_hook=_decode_nonfinite)


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write `value` atomically as JSON, including NaN and infinite numbers. Raises OSError."""
    write_atomically(path, dump_json(value, indent=indent) + "\n")


def read_json(path: Path) -> Any:
    """Return what `write_json` wrote. Raises OSError or ValueError."""
    return parse_json(path.read_text("utf-8"))


def read_json_lines(path: Path, *, skip_torn: bool = True, skip_damaged: bool = False) -> list[Any]:
    """Return the value of each line of a JSON-lines file such as metrics.jsonl.

    Args:
      skip_torn: skip an incomplete last line, which is being written or whose writer was killed.
      skip_damaged: also skip all other lines that are not JSON.

    Raises OSError, or ValueError that names the damaged line.
    """
    values = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(keepends=True), 1):
        try:
            values.append(parse_json(line))
        except ValueError as e:
            if not (skip_damaged if line.endswith("\n") else skip_torn):
                raise ValueError(f"line {number}: {e}") from e
    return values


def hash_texts(*texts: str) -> str:
    """Return 16 hexadecimal digits that identify `texts`, given in this order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def encode_nonfinite(value: Any) -> Any:
    """Return a copy of `value` with NaN and infinite numbers in the form of `dump_json`."""
    if isinstance(value, list | tuple):
        return [encode_nonfinite(item) for item in value]
    if not isinstance(value, dict):
        return value
    found: dict[str, str] = {}

    def encode(item: Any, path: str) -> Any:
        if isinstance(item, float) and not math.isfinite(item):
            found[path] = str(float(item))
            return None
        if isinstance(item, list | tuple):
            return [encode(each, f"{path}/{i}") for i, each in enumerate(item)]
        return encode_nonfinite(item)

    plain = {key: encode(item, str(key)) for key, item in value.items()}
    return plain | ({_NONFINITE: found} if found else {})


def _decode_nonfinite(value: dict[str, Any]) -> dict[str, Any]:
    """Put the numbers of "nonfinite_values" back. Raises ValueError for a wrong path."""
    for path, number in value.pop(_NONFINITE, {}).items():
        node: Any = value
        try:
            *keys, last = _split_path(value, path)
            for key in keys:
                node = node[key]
            if node[last] is not None:
                raise ValueError("not null")
            node[last] = float(number)
        except (LookupError, TypeError, ValueError) as e:
            name = f"{_NONFINITE} names {path!r}"
            raise ValueError(f"{name}, which does not exist or is not null") from e
    return value


def _split_path(value: dict[str, Any], path: str) -> list[Any]:
    """Split a path into keys. The first key may contain slashes."""
    if path in value:
        return [path]
    name, *indices = path.split("/")
    while name not in value and indices:
        name = f"{name}/{indices.pop(0)}"
    return [name, *map(int, indices)]
