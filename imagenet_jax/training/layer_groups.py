"""The parameters of a model by layer group: stem, stages, head, as `models.groups` has them."""

from collections.abc import Callable
from typing import Any

import jax

from imagenet_jax import models


def by_group(params: Any, model: str, value: Callable[[int], Any]) -> Any:
    """A tree like `params` with value(index of the parameter's group) at each leaf."""
    groups = models.groups(model)

    def of(path: tuple[Any, ...], _: Any) -> Any:
        keys = tuple(entry.key for entry in path)
        matches = [
            i for i, group in enumerate(groups) for prefix in group if keys[: len(prefix)] == prefix
        ]
        (index,) = matches  # groups cover the parameters, each once
        return value(index)

    return jax.tree_util.tree_map_with_path(of, params)


def named_groups(tree: Any, model: str) -> dict[str, list[Any]]:
    """The leaves of a tree like the parameters, by group: {"conv1": [...], "layer1": [...], ...}.

    A group bears the name of its first module: that of a ResNet's stem, conv1 and bn1, is "conv1".
    """
    names = [".".join(map(str, places[0])) for places in models.groups(model)]
    groups: dict[str, list[Any]] = {name: [] for name in names}
    owners = by_group(tree, model, lambda index: names[index])
    for name, leaf in zip(jax.tree.leaves(owners), jax.tree.leaves(tree), strict=True):
        groups[name].append(leaf)
    return groups
