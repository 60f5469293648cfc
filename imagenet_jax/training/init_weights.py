"""Initial weights from a weights file, instead of random values."""

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from imagenet_jax import models
from imagenet_jax.data.classes import KnownClasses, require_same_labels
from imagenet_jax.data.sources import Source
from imagenet_jax.errors import UserError, expand_user
from imagenet_jax.runtime import xla
from imagenet_jax.training.load_weights import place_like
from imagenet_jax.training.state import TrainState
from imagenet_jax.weights import torch_names, weight_file


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """The content of a weights file that training starts from.

    Attributes:
      params, batch_stats: nested dicts of f32 NumPy arrays; `params` lacks the head if the file
        has no classifier or one of another number of classes.
      sha256: of the file, in hexadecimal.
      summary: one line for the console.
      known: the classes of the file's head; None if the head is not used.
    """

    params: dict[Any, Any]
    batch_stats: dict[Any, Any]
    sha256: str
    summary: str
    known: KnownClasses | None


def read_initial_weights(config: ConfigDict) -> InitialWeights:
    """Read the file of `config.init.weights`, which must not be "".

    Raises UserError if the file cannot be read, or if more than the head does not fit the model.
    """
    path = expand_user(config.init.weights)
    origin = f"config.init.weights = {str(path)!r}"
    file = weight_file.read(path, config.init.weights_key)
    classes = torch_names.count_classes(file.arrays, config.model.name)
    model = dict(config.model) | ({"num_classes": classes} if classes else {})
    params, batch_stats = torch_names.from_torch(
        file.arrays, model, has_head=classes > 0, origin=origin
    )
    summary = f"weights of {path}"
    known = None
    if not classes:
        summary += ", which has no classifier: the head starts from random values"
    elif classes != config.model.num_classes or config.init.new_head:
        params = _without(params, models.family(config.model.name).head)
        summary += (
            f", except for the head: it has {classes} classes there and "
            f"{config.model.num_classes} here, and starts from random values"
        )
    else:
        names = weight_file.load_class_names(path)
        known = KnownClasses.of_head(names, classes, f"weights file {path}")
    summary += f" ({file.note})" if file.note else ""
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return InitialWeights(params, batch_stats, digest, summary, known)


def require_its_classes(weights: InitialWeights, source: Source) -> None:
    """Raise UserError if the head of the file is used and its classes differ from the data's."""
    if weights.known:
        try:
            require_same_labels(weights.known, source)
        except UserError as e:
            raise UserError(f"{e}; for other classes, --config.init.new_head=true") from e


def start_from(
    weights: InitialWeights, state: TrainState, tx: optax.GradientTransformation
) -> TrainState:
    """Return `state` with new weights, EMA weights equal to them, and a new optimizer state.

    Arrays that `weights` does not have keep their values. Shardings stay.
    """
    params = _replace(state.params, weights.params)
    batch_stats = _replace(state.batch_stats, weights.batch_stats)
    old = (state.opt_state, state.ema)

    def rest(params: Any, batch_stats: Any) -> tuple[Any, Any]:
        tree = {"params": params, "batch_stats": batch_stats}
        return tx.init(params), jax.tree.map(jnp.copy, tree) if state.ema is not None else None

    opt_state, ema = jax.jit(
        rest,
        out_shardings=jax.tree.map(lambda x: x.sharding, old),
        compiler_options=xla.options(optimize=False),
    )(params, batch_stats)
    return TrainState(state.step, params, batch_stats, opt_state, ema)


def _without(tree: Any, path: tuple[Any, ...]) -> Any:
    """Return nested dicts without the entry at `path`."""
    first, *rest = path
    kept = {key: value for key, value in tree.items() if key != first}
    return kept | {first: _without(tree[first], tuple(rest))} if rest else kept


def _replace(tree: Any, new: Any) -> Any:
    """Return `tree` with the arrays of `new`, in the shardings of those they replace."""
    if isinstance(new, np.ndarray):
        return place_like(new, jax.ShapeDtypeStruct(tree.shape, tree.dtype, sharding=tree.sharding))
    return {k: _replace(v, new[k]) if k in new else v for k, v in tree.items()}
