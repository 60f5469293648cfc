"""Layer groups of a model (stem, stages, head): its parameters by group, and their norms."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from imagenet_jax import models


def map_groups(function: Callable[[int], Any], params: Any, model: str) -> Any:
    """Return a tree like the parameters of `model` with function(index of the group) at each leaf.

    Groups count from 0, at the input; the last is the head.
    """
    groups = models.family(model).groups

    def value(path: tuple[Any, ...], _: Any) -> Any:
        keys = tuple(entry.key for entry in path)
        matches = [
            i for i, group in enumerate(groups) for prefix in group if keys[: len(prefix)] == prefix
        ]
        (index,) = matches  # every parameter is in exactly one group
        return function(index)

    return jax.tree_util.tree_map_with_path(value, params)


def named_groups(tree: Any, model: str) -> dict[str, list[Any]]:
    """Return the leaves of a tree like the parameters, by group: {"conv1": [...], "layer1": ...}.

    A group has the name of its first module: conv1 and bn1, a ResNet's stem, are "conv1".
    """
    names = [".".join(map(str, places[0])) for places in models.family(model).groups]
    groups: dict[str, list[Any]] = {name: [] for name in names}
    owners = map_groups(lambda index: names[index], tree, model)
    for name, leaf in zip(jax.tree.leaves(owners), jax.tree.leaves(tree), strict=True):
        groups[name].append(leaf)
    return groups


def group_norms(model: str, grads: Any, updates: Any, params: Any) -> dict[str, jax.Array]:
    """Return f32[] by name, for each layer group G of `model`. Pure: call it in the train step.

    "grad_norm/G" and "param_norm/G" are Euclidean norms; their squares add up to those of the whole
    model. "update_ratio/G" is the norm of the update over that of the parameters, 0 if they are all
    0.

    Args:
      grads, updates, params: trees like the parameters; `grads` before clipping, `params` after the
        update.
    """
    norms = {}
    update_norms = _norms(updates, model)
    for group, norm in _norms(params, model).items():
        norms[f"param_norm/{group}"] = norm
        norms[f"update_ratio/{group}"] = jnp.where(norm > 0, update_norms[group] / norm, 0)
    return {f"grad_norm/{group}": n for group, n in _norms(grads, model).items()} | norms


def _norms(tree: Any, model: str) -> dict[str, jax.Array]:
    return {group: optax.tree.norm(leaves) for group, leaves in named_groups(tree, model).items()}
