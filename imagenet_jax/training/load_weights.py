"""Weights to use rather than to train on: of a weights file, or of a run's checkpoint."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imagenet_jax.data import sources
from imagenet_jax.data.classes import (
    KnownClasses,
    find_outputs,
    imagenet_names,
    imagenet_wnids,
)
from imagenet_jax.errors import UserError
from imagenet_jax.runtime.workdir import read_classes, read_config
from imagenet_jax.training.checkpoint_reader import open_to_read
from imagenet_jax.training.sharding import make_mesh
from imagenet_jax.training.state import abstract_state
from imagenet_jax.weights import torch_names, weight_file


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights with what it takes to run them.

    Attributes:
      config: the run's, or the one given with the file.
      tree: {"params", "batch_stats"} of f32 arrays.
      mesh: where the arrays live.
      class_names: label -> name for people; () where nobody knows.
      origin: for messages.
      known: the classes by the names that they were trained with.
      note: one line on what was chosen, renamed and skipped in a file; "" if nothing was.
    """

    config: ConfigDict
    tree: dict[str, Any]
    mesh: Mesh
    class_names: tuple[str, ...]
    origin: str
    known: KnownClasses
    note: str = ""


def of_file(path: Path, config: ConfigDict, key: str = "") -> Weights:
    """The weights of a weights file, for the model of `config`; `key` as for `weight_file.read`.

    Class names are those stored in the file, ImageNet's where it has 1000 classes, or those of the
    data that `config` names, where it is here.

    Raises UserError where the file cannot be read or does not fit the model.
    """
    (tree, file), mesh = read_file(path, config, key), make_mesh(config.mesh.fsdp)
    known = known_to_file(path, config)
    names = known.names
    if not names:
        source = _data(config)
        names = source.class_names if source else ()
    placed = place(tree, config, mesh)
    readable = _readable(names, config)
    return Weights(config, placed, mesh, readable, known.origin, known, file.note)


def known_to_file(path: Path, config: ConfigDict) -> KnownClasses:
    """The classes of a weights file for the model of `config`."""
    names = weight_file.load_class_names(path)
    return KnownClasses.of_head(names, config.model.num_classes, f"weights file {path}")


def known_to_run(workdir: Path, config: ConfigDict) -> KnownClasses:
    """The classes that a run of `config` trains on."""
    return KnownClasses.of_head(read_classes(workdir), config.model.num_classes, str(workdir))


def check_data(weights: Weights) -> None:
    """Raise UserError where the data that the config names has the same number of classes under
    different names.

    Data that is not there, or has another number of classes, is not what the weights are for.
    """
    source = _data(weights.config)
    if source and len(source.class_names) == weights.known.count:
        find_outputs(weights.known, source)


def read_file(
    path: Path, config: ConfigDict, key: str = ""
) -> tuple[dict[str, Any], weight_file.WeightsFile]:
    """({"params", "batch_stats"}, f32 NumPy arrays for the model of `config`, and the file itself).

    Raises UserError where the file cannot be read or does not fit the model.
    """
    file = weight_file.read(path, key)
    origin = f"weights file {path}"
    params, batch_stats = torch_names.from_torch(file.arrays, config.model, origin=origin)
    return {"params": params, "batch_stats": batch_stats}, file


def of_workdir(
    workdir: Path, checkpoint: str = "latest", overrides: Iterable[tuple[str, str]] = ()
) -> Weights:
    """The weights of a checkpoint ("latest", "best" or a step): EMA weights where the run keeps
    them. The data is not needed.

    Raises UserError where there is no such checkpoint.
    """
    config = read_config(workdir, overrides)
    mesh = make_mesh(config.mesh.fsdp)
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"no checkpoint in {workdir}: train into this workdir first")
    checkpoints = open_to_read(workdir, config)
    has_ema = config.ema.decay > 0
    abstract = abstract_state(config.model, optax.identity(), has_ema, mesh)
    state, step = checkpoints.restore_chosen(abstract, checkpoint)
    tree = state.weights("ema" if has_ema else "raw")
    known = known_to_run(workdir, config)
    origin = f"checkpoint {workdir / 'checkpoints' / str(step)}"
    return Weights(config, tree, mesh, _readable(known.names, config), origin, known)


def place(tree: dict[str, Any], config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
    """NumPy arrays of every process -> the same as arrays on the mesh, sharded as in training."""
    abstract = abstract_state(config.model, optax.identity(), False, mesh).weights("raw")
    return jax.tree.map(place_like, tree, abstract)


def place_like(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    """`array`, the same in every process, in the sharding of `like`."""
    return jax.make_array_from_callback(like.shape, like.sharding, lambda part: array[part])


def _readable(names: tuple[str, ...], config: ConfigDict) -> tuple[str, ...]:
    """Words for WordNet ids; () where the number of classes is another."""
    if names == imagenet_wnids():
        return imagenet_names()
    return names if len(names) == config.model.num_classes else ()


def _data(config: ConfigDict) -> sources.Source | None:
    """The evaluation split that `config` names; None where it is not here."""
    if config.data.source in ("digits", "synthetic"):  # opening those would make them
        return None
    try:
        return sources.open_source(config.data, config.data.eval_split)
    except UserError:
        return None  # predictions need no data
