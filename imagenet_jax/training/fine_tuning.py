"""Fine-tuning: the head alone at first, and smaller steps for layers further from it."""

from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from imagenet_jax import models
from imagenet_jax.data.sampler import in_steps
from imagenet_jax.training.layer_groups import by_group


def layer_scales(params: Any, model: str, decay: float) -> Any:
    """The factor of the learning rate of each parameter: decay ** (groups from the head).

    Groups are the stem, the stages and the head, as `models.groups` has them: "discriminative
    fine-tuning" (Howard & Ruder 2018, arXiv:1801.06146), in the form of Clark et al. 2020,
    arXiv:2003.10555.
    """
    last = len(models.groups(model)) - 1
    return by_group(params, model, lambda group: decay ** (last - group))


def scale_layers(model: str, decay: float) -> optax.GradientTransformation:
    """Multiplies each update by its `layer_scales`."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(jnp.multiply, updates, layer_scales(updates, model, decay)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


class _Frozen(NamedTuple):
    """`step`: i32[], updates so far; `inner`: state of the rule."""

    step: jax.Array
    inner: Any


def _still_until(start: int, rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Updates of zero, the rule's state untouched, before update `start`; then the rule."""

    def init(params: Any) -> _Frozen:
        return _Frozen(jnp.zeros((), jnp.int32), rule.init(params))

    def update(grads: Any, state: _Frozen, params: Any = None) -> tuple[Any, _Frozen]:
        updates, inner = rule.update(grads, state.inner, params)
        moves = state.step >= start
        updates = jax.tree.map(lambda u: jnp.where(moves, u, 0), updates)
        inner = jax.tree.map(lambda new, old: jnp.where(moves, new, old), inner, state.inner)
        return updates, _Frozen(state.step + 1, inner)

    return optax.GradientTransformation(init, update)


def head_first(
    rule: optax.GradientTransformation, model: str, start: int
) -> optax.GradientTransformation:
    """`rule` on the head from the first update, on all else from update `start`.

    Until then everything but the head stays as it is: no decay, no momentum gathered. Statistics of
    batch norm move all the same.
    """
    last = len(models.groups(model)) - 1

    def labels(params: Any) -> Any:
        return by_group(params, model, lambda group: "head" if group == last else "rest")

    return optax.multi_transform({"head": rule, "rest": _still_until(start, rule)}, labels)


def zero_frozen(model: str, start: int) -> optax.GradientTransformation:
    """Gradients of all but the head become zeros before update `start`: clipping sees no others."""
    return head_first(optax.identity(), model, start)


class FineTuning(NamedTuple):
    """What the optimizer needs to know to fine-tune.

    Attributes:
      model: its name.
      layer_decay: see `layer_scales`; 1: all alike.
      frozen_steps: updates in which the head alone learns.
    """

    model: str
    layer_decay: float
    frozen_steps: int


def fine_tuning_of(config: ConfigDict, steps_per_epoch: Fraction) -> FineTuning:
    """What `config.optim` asks for."""
    return FineTuning(
        config.model.name,
        config.optim.layer_decay,
        # The step counter is an int32.
        min(round(in_steps(config.optim.freeze_epochs, steps_per_epoch)), 2**31 - 1),
    )
