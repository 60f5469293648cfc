"""Norms by layer group, computed inside the train step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from imagenet_jax.training.layer_groups import named_groups


def group_norms(model: str, grads: Any, updates: Any, params: Any) -> dict[str, jax.Array]:
    """f32[] by name, for each layer group G of `model` (its name).

    "grad_norm/G" is before clipping, "param_norm/G" after the update, both Euclidean: their squares
    add up to those of the whole model's. "update_ratio/G" is the norm of the update over that of
    the parameters it led to, 0 where these are all 0.

    Args:
      grads, updates, params: trees like the parameters; `params` after the update.
    """
    norms = {}
    moved = _norms(updates, model)
    for group, norm in _norms(params, model).items():
        norms[f"param_norm/{group}"] = norm
        norms[f"update_ratio/{group}"] = jnp.where(norm > 0, moved[group] / norm, 0)
    return {f"grad_norm/{group}": n for group, n in _norms(grads, model).items()} | norms


def _norms(tree: Any, model: str) -> dict[str, jax.Array]:
    return {group: optax.tree.norm(leaves) for group, leaves in named_groups(tree, model).items()}
