"""The arrays of a tree by name, to tell two trees apart."""

from typing import Any

import jax


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
