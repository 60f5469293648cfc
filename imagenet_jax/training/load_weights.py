"""Loading of trained weights, from a weights file or from a checkpoint of a run."""

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
    """Weights, and what is needed to use them.

    Attributes:
      config: of the run, or the one given with the file.
      tree: {"params", "batch_stats"} of f32 arrays.
      mesh: where the arrays live.
      class_names: readable name of each label; () if unknown.
      origin: the file or checkpoint, for messages.
      known: the classes, by the names they were trained with.
      note: one line on what was chosen, renamed and skipped in a file; "" if nothing was.
    """

    config: ConfigDict
    tree: dict[str, Any]
    mesh: Mesh
    class_names: tuple[str, ...]
    origin: str
    known: KnownClasses
    note: str = ""


def load_weights_file(path: Path, config: ConfigDict, key: str = "") -> Weights:
    """Load a weights file for the model of `config`; `key` is that of `weight_file.read`.

    Class names are those stored in the file, ImageNet's if it has 1000 classes, or those of the
    data of `config` if it is on this machine.

    Raises UserError if the file cannot be read or does not fit the model.
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
    """Return the classes of a weights file for the model of `config`."""
    names = weight_file.load_class_names(path)
    return KnownClasses.of_head(names, config.model.num_classes, f"weights file {path}")


def known_to_run(workdir: Path, config: ConfigDict) -> KnownClasses:
    """Return the classes that a run of `config` trains on."""
    return KnownClasses.of_head(read_classes(workdir), config.model.num_classes, str(workdir))


def check_data(weights: Weights) -> None:
    """Raise UserError if the data of the config has equally many classes with different names.

    Data that is missing, or that has another number of classes, is not checked: it is not the data
    that the weights are for.
    """
    source = _data(weights.config)
    if source and len(source.class_names) == weights.known.count:
        find_outputs(weights.known, source)


def read_file(
    path: Path, config: ConfigDict, key: str = ""
) -> tuple[dict[str, Any], weight_file.WeightsFile]:
    """Return {"params", "batch_stats"} of f32 NumPy arrays for the model of `config`, and the file.

    Raises UserError if the file cannot be read or does not fit the model.
    """
    file = weight_file.read(path, key)
    origin = f"weights file {path}"
    params, batch_stats = torch_names.from_torch(file.arrays, config.model, origin=origin)
    return {"params": params, "batch_stats": batch_stats}, file


def load_run_weights(
    workdir: Path, checkpoint: str = "latest", overrides: Iterable[tuple[str, str]] = ()
) -> Weights:
    """Load a checkpoint ("latest", "best" or a step): its EMA weights if the run keeps them.

    The data is not needed. Raises UserError if there is no such checkpoint.
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
    """Put NumPy arrays, equal in all processes, on the mesh, sharded as in training."""
    abstract = abstract_state(config.model, optax.identity(), False, mesh).weights("raw")
    return jax.tree.map(place_like, tree, abstract)


def place_like(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    """Put `array`, equal in all processes, on devices in the sharding of `like`."""
    return jax.make_array_from_callback(like.shape, like.sharding, lambda part: array[part])


def _readable(names: tuple[str, ...], config: ConfigDict) -> tuple[str, ...]:
    """Return words for WordNet ids; () if there are not as many names as classes."""
    if names == imagenet_wnids():
        return imagenet_names()
    return names if len(names) == config.model.num_classes else ()


def _data(config: ConfigDict) -> sources.Source | None:
    """Open the evaluation split of `config`; return None if it is not on this machine."""
    if config.data.source in ("digits", "synthetic"):  # opening them would create them
        return None
    try:
        return sources.open_source(config.data, config.data.eval_split)
    except UserError:
        return None  # predictions need no data
