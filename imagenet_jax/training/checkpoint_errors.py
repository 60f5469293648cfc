"""Checkpoint errors: full disks, failed writes, and arrays that do not fit the config."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from imagenet_jax.errors import UserError, one_line

_DISK_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO,
)  # fmt: skip
# Space for everything except the arrays: names, shapes, shardings and partly filled blocks.
_OVERHEAD_BYTES = 2**20


def require_space(directory: Path, size: int) -> None:
    """Raise OSError if the disk of `directory` has no space for arrays of `size` bytes.

    Without this check, Orbax prints an error for each array, from threads that keep writing.
    """
    free, needed = shutil.disk_usage(directory).free, size + _OVERHEAD_BYTES
    if free < needed:
        text = f"{os.strerror(errno.ENOSPC)}, {free:,} bytes free of {needed:,} needed"
        raise OSError(errno.ENOSPC, text)


def describe(error: Exception) -> str:
    """Return the error in one line; from long messages of tensorstore, only the system error."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = one_line(error, length=None)
    known = [os.strerror(code) for code in _DISK_ERRORS if os.strerror(code) in text]
    return known[0] if known else text[:300]


def require_same_arrays(path: Path, expected: Any) -> None:
    """Raise UserError if the arrays saved in `path` differ in name or type from `expected`."""
    try:
        with ocp.StandardCheckpointer() as reader:
            found = reader.metadata(path).item_metadata.tree
    except (ValueError, KeyError, FileNotFoundError, AttributeError) as e:
        raise UserError(f"checkpoint {path} cannot be read: {one_line(e)}") from e
    if changes := list_changes(found, expected):
        more = len(changes) - 8
        shown = "; ".join(changes[:8]) + (f"; and {more} more" if more > 0 else "")
        raise UserError(
            f"checkpoint {path} has different arrays than this config and version of the code: "
            f"{shown}; continue with the config that saved it and the git_revision in "
            "provenance.json, or use another --workdir"
        )


def list_changes(saved: Any, expected: Any) -> list[str]:
    """Return a line for each array that differs between two trees, with dtype[shape] in both."""
    old, new = _describe_arrays(saved), _describe_arrays(expected)
    pairs = {n: (old.get(n, "absent"), new.get(n, "absent")) for n in sorted(old.keys() | new)}
    return [f"{n}: {a} in the checkpoint, {b} in the code" for n, (a, b) in pairs.items() if a != b]


def _describe_arrays(tree: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
