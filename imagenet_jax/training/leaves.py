"""The arrays of a tree by name, to compare a checkpoint with what the code expects."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from imagenet_jax.errors import UserError, one_line


def require_same(path: Path, expected: Any) -> None:
    """Raise UserError, naming arrays, if those saved in `path` are not those of `expected`."""
    try:
        with ocp.StandardCheckpointer() as reader:
            found = reader.metadata(path).item_metadata.tree
    except (ValueError, KeyError, FileNotFoundError, AttributeError) as e:
        raise UserError(f"checkpoint {path} cannot be read: {one_line(e)}") from e
    different = changes(found, expected)
    if different:
        more = len(different) - 8
        shown = "; ".join(different[:8]) + (f"; and {more} more" if more > 0 else "")
        raise UserError(
            f"checkpoint {path} holds other arrays than this config and version of the code "
            f"have: {shown}; continue with the config that saved it and the git_revision in "
            "provenance.json, or use another --workdir"
        )


def changes(saved: Any, expected: Any) -> list[str]:
    """One line per array that two trees do not have alike: its path, and dtype[shape] of both."""
    old, new = _leaves(saved), _leaves(expected)
    pairs = {n: (old.get(n, "absent"), new.get(n, "absent")) for n in sorted(old.keys() | new)}
    return [f"{n}: {a} in the checkpoint, {b} in the code" for n, (a, b) in pairs.items() if a != b]


def _leaves(tree: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
