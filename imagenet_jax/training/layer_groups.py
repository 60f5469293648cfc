"""Layer groups of a model (stem, stages, head): norms, learning rates and freezing by group."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from imagenet_jax import models
from imagenet_jax.data.sampler import in_steps
from imagenet_jax.models.base import Path

_LAST_STEP = 2**31 - 1  # the step counter is an int32


def map_groups(function: Callable[[int], Any], params: Any, model: str) -> Any:
    """Return a tree like the parameters of `model`, with function(index of its group) at each leaf.

    Groups are numbered from 0 at the input; the last one is the head.
    """
    groups = _groups(params, model)

    def value(path: tuple[Any, ...], _: Any) -> Any:
        (index,) = (i for i, group in enumerate(groups) if _is_in(group, path))  # exactly one
        return function(index)

    return jax.tree_util.tree_map_with_path(value, params)


def head_mask(params: Any, model: str) -> Any:
    """Return a tree with True for parameters in the head of `model`; "": all are False."""
    if not model:
        return jax.tree.map(lambda _: False, params)
    last = len(_groups(params, model)) - 1
    return map_groups(lambda group: group == last, params, model)


def _groups(params: Any, model: str) -> list[tuple[Path, ...]]:
    """Return the groups of the model's family that have parameters, and the head."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    *body, head = models.family(model).groups
    return [*(group for group in body if any(_is_in(group, path) for path in paths)), head]


def _is_in(group: tuple[Path, ...], path: tuple[Any, ...]) -> bool:
    keys = tuple(entry.key for entry in path)
    return any(keys[: len(prefix)] == prefix for prefix in group)


def named_groups(tree: Any, model: str) -> dict[str, list[Any]]:
    """Return the leaves of `tree`, which is like the parameters, by group: {"conv1": [...], ...}.

    A group is named after its first module: conv1 and bn1, the stem of a ResNet, are "conv1".
    """
    names = [".".join(map(str, places[0])) for places in _groups(tree, model)]
    groups: dict[str, list[Any]] = {name: [] for name in names}
    owners = map_groups(lambda index: names[index], tree, model)
    for name, leaf in zip(jax.tree.leaves(owners), jax.tree.leaves(tree), strict=True):
        groups[name].append(leaf)
    return groups


def group_norms(model: str, grads: Any, updates: Any, params: Any) -> dict[str, jax.Array]:
    """Return f32[] scalars for each layer group G of `model`. Call it in the train step.

    "grad_norm/G" and "param_norm/G" are Euclidean norms, whose squares add up to those of the whole
    model. "update_ratio/G" is the norm of the update divided by the norm of the parameters, or 0 if
    the latter is 0.

    Args:
      grads: before clipping.
      updates: of the optimizer.
      params: after the update.
    """

    def norms(tree: Any) -> dict[str, jax.Array]:
        return {
            group: optax.tree.norm(leaves) for group, leaves in named_groups(tree, model).items()
        }

    gradient, update, param = norms(grads), norms(updates), norms(params)
    ratio = {group: jnp.where(norm > 0, update[group] / norm, 0) for group, norm in param.items()}
    found = {"grad_norm": gradient, "param_norm": param, "update_ratio": ratio}
    return {f"{name}/{group}": v for name, groups in found.items() for group, v in groups.items()}


class FineTuning(NamedTuple):
    """The options of the optimizer for fine-tuning.

    Attributes:
      model: name of the model.
      layer_decay: see `layer_scales`; 1: the same learning rate for all layers.
      frozen_steps: number of steps that train only the head.
    """

    model: str
    layer_decay: float
    frozen_steps: int


NO_TUNING = FineTuning("", layer_decay=1.0, frozen_steps=0)


def make_fine_tuning(
    config: ConfigDict, steps_per_epoch: Fraction | int, shift: Fraction | int = 0
) -> FineTuning:
    """Return the fine-tuning options of `config`; `shift` is `Sampler.shift` in steps."""
    exact = in_steps(config.optim.freeze_epochs, steps_per_epoch)
    frozen = max(1, round(exact - shift)) if round(exact) and shift else round(exact)
    if is_linear_probe(config):
        frozen = _LAST_STEP  # training rounds its steps up
    return FineTuning(config.model.name, config.optim.layer_decay, min(frozen, _LAST_STEP))


def is_linear_probe(config: ConfigDict) -> bool:
    """Return whether only the head is ever trained."""
    return config.optim.freeze_epochs >= config.epochs


def layer_scales(params: Any, model: str, decay: float) -> Any:
    """Return the learning-rate factor of each parameter: decay ** (groups between it and the head).

    The factor is 1 in the head, `decay` in the last stage, and so on. This is discriminative
    fine-tuning (Howard & Ruder 2018, arXiv:1801.06146) in the form of Clark et al. 2020
    (arXiv:2003.10555).
    """
    last = len(_groups(params, model)) - 1
    return map_groups(lambda group: decay ** (last - group), params, model)


def scale_layers(tuning: FineTuning) -> optax.GradientTransformation:
    """Return a transformation that multiplies updates by `layer_scales`."""

    def scale(updates: Any, params: Any) -> Any:
        scales = layer_scales(updates, tuning.model, tuning.layer_decay)
        return jax.tree.map(jnp.multiply, updates, scales)

    return optax.stateless(scale)


def head_first(
    rule: optax.GradientTransformation, tuning: FineTuning
) -> optax.GradientTransformation:
    """Return `rule`, applied to layers other than the head only after frozen_steps updates.

    Until then, the parameters of these layers have no updates, weight decay or momentum. Batch-norm
    statistics are still updated.
    """

    def labels(params: Any) -> Any:
        mask = head_mask(params, tuning.model)
        return jax.tree.map(lambda is_head: "head" if is_head else "rest", mask)

    rules = {"head": rule, "rest": _freeze_until(tuning.frozen_steps, rule)}
    return optax.multi_transform(rules, labels)


def zero_frozen(tuning: FineTuning) -> optax.GradientTransformation:
    """Return a transformation that zeroes the gradients of frozen layers, before clipping."""
    return head_first(optax.identity(), tuning)


def freeze_body(params: Any, model: str) -> Any:
    """Return `params` for a linear probe: layers other than the head get no gradients.

    XLA then leaves out their backward pass, most of a step's work.
    """

    def freeze(param: jax.Array, is_head: bool) -> jax.Array:
        return param if is_head else jax.lax.stop_gradient(param)

    return jax.tree.map(freeze, params, head_mask(params, model))


class _Frozen(NamedTuple):
    """The number of updates so far, i32[], and the state of the rule."""

    step: jax.Array
    inner: Any


def _freeze_until(start: int, rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return `rule` with zero updates and an unchanged state before update `start`."""

    def init(params: Any) -> _Frozen:
        return _Frozen(jnp.zeros((), jnp.int32), rule.init(params))

    def update(grads: Any, state: _Frozen, params: Any = None) -> tuple[Any, _Frozen]:
        updates, inner = rule.update(grads, state.inner, params)
        moves = state.step >= start
        updates = jax.tree.map(lambda u: jnp.where(moves, u, 0), updates)
        inner = jax.tree.map(lambda new, old: jnp.where(moves, new, old), inner, state.inner)
        return updates, _Frozen(state.step + 1, inner)

    return optax.GradientTransformation(init, update)


def describe_frozen_phase(config: ConfigDict, frozen_steps: int, step: int) -> str:
    """Return a line that says how long only the head is trained; "" if `step` is past that."""
    if step >= frozen_steps:
        return ""
    field = f"(config.optim.freeze_epochs = {config.optim.freeze_epochs:g})"
    if is_linear_probe(config):
        return f"training only the head {field}"
    return f"training only the head up to step {frozen_steps:,} {field}, then all layers"
