"""Atomic writes, JSON files, JSON-lines files and hashes."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagenet_jax import strict_json


def write_atomically(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write a file that has either its old or its new content at every moment.

    The content goes to a hidden file beside `path`, is flushed to the disk, and is then renamed to
    `path`. If that fails, `path` is unchanged and the hidden file is removed.

    Args:
      content: text (written as UTF-8), bytes, or a function that writes the file to the path it is
        given. That path has the suffix of `path`.

    Raises OSError.
    """
    # A random name: processes in two containers may share a directory and a process number.
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


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write `value` as JSON, NaN and infinite numbers included, atomically. Raises OSError."""
    write_atomically(path, strict_json.dumps(value, indent=indent) + "\n")


def read_json(path: Path) -> Any:
    """Return what `write_json` wrote. Raises OSError or ValueError."""
    return strict_json.loads(path.read_text("utf-8"))


def read_json_lines(path: Path, *, skip_torn: bool = True, skip_damaged: bool = False) -> list[Any]:
    """Return the value of each line of a JSON-lines file such as metrics.jsonl.

    Args:
      skip_torn: skip an incomplete last line: it is being written, or its writer was killed.
      skip_damaged: skip every other line that is not JSON as well.

    Raises OSError, or ValueError that names the damaged line.
    """
    values = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(keepends=True), 1):
        try:
            values.append(strict_json.loads(line))
        except ValueError as e:
            skipped = skip_damaged if line.endswith("\n") else skip_torn
            if not skipped:
                raise ValueError(f"line {number}: {e}") from e
    return values


def hash_texts(*texts: str) -> str:
    """Return 16 hexadecimal digits that identify `texts`, given in this order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def _flush_to_disk(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
