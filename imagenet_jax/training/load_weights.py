"""Loading of trained weights from weights files and checkpoints, also as initial weights."""

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imagenet_jax import models
from imagenet_jax.data import sources
from imagenet_jax.data.classes import (
    KnownClasses,
    find_outputs,
    imagenet_names,
    imagenet_wnids,
    require_same_labels,
)  # fmt: skip
from imagenet_jax.errors import UserError
from imagenet_jax.runtime import integrity, xla
from imagenet_jax.runtime.processes import count, is_first, run_on_first
from imagenet_jax.runtime.workdir import read_classes, read_config
from imagenet_jax.training.checkpoint import Checkpoints, make_state, weights_tree
from imagenet_jax.training.sharding import get_shardings, make_mesh
from imagenet_jax.training.state import TrainState, abstract_state, new_state
from imagenet_jax.weights import catalog, state_dicts, weight_file


@dataclasses.dataclass(frozen=True)
class Weights:
    """Loaded weights, and what is needed to use them.

    Attributes:
      config: config of the run, or that given with the file.
      tree: {"params", "batch_stats"} of f32 arrays.
      mesh: devices that have the arrays.
      class_names: readable name of each label; () if unknown.
      origin: file or checkpoint, for messages.
      known: classes, by the names that they had in training.
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
    """Load a weights file for the model of `config`; `key` is passed to `weight_file.read`.

    Class names come from the file; otherwise, they are ImageNet's if there are 1000 classes, or
    those of the data of `config` if it is on this machine.

    Raises UserError if the file cannot be read or does not fit the model.
    """
    (tree, file), mesh = read_file(path, config, key), make_mesh(config.mesh.fsdp)
    known, source = known_to_file(path, config), _open_data(config)
    names = known.names or (source.class_names if source else ())
    placed = place(tree, config, mesh)
    return Weights(config, placed, mesh, _readable(names, config), known.origin, known, file.note)


def known_to_file(path: Path, config: ConfigDict) -> KnownClasses:
    """Return the classes of a weights file for the model of `config`."""
    names = weight_file.load_class_names(path)
    return KnownClasses.of_head(names, config.model.num_classes, f"weights file {path}")


def known_to_run(workdir: Path, config: ConfigDict) -> KnownClasses:
    """Return the classes that a run of `config` trains on."""
    return KnownClasses.of_head(read_classes(workdir), config.model.num_classes, str(workdir))


def check_data(weights: Weights) -> None:
    """Raise UserError if the data of the config has as many classes but with other names.

    Data that is missing or has another number of classes is not checked, because the weights are
    for other data.
    """
    source = _open_data(weights.config)
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
    params, batch_stats = state_dicts.from_torch(file.arrays, config.model, origin=origin)
    return {"params": params, "batch_stats": batch_stats}, file


def load_run_weights(
    workdir: Path,
    checkpoint: str = "latest",
    overrides: Iterable[tuple[str, str]] = (),
    average: int = 1,
) -> Weights:
    """Load the EMA weights, or else the raw weights, of a checkpoint ("latest", "best" or a step).

    With `average` = N above 1, parameters and batch-norm statistics are averaged over the N latest
    or N best checkpoints. The data is not needed.

    Raises UserError if there is no such checkpoint.
    """
    config = read_config(workdir, overrides)
    mesh = make_mesh(config.mesh.fsdp)
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"no checkpoint in {workdir}: train into this workdir first")
    checkpoints = open_to_read(workdir, config)
    has_ema = config.ema.decay > 0
    abstract = abstract_state(config.model, optax.identity(), has_ema, mesh)
    kind = "ema" if has_ema else "raw"
    if average == 1:
        state, step = checkpoints.restore_chosen(abstract, checkpoint)
        tree, name = state.weights(kind), str(step)
    else:
        steps = checkpoints.find_several(checkpoint, average)
        trees = (checkpoints.restore_weights(abstract, step).weights(kind) for step in steps)
        total = functools.reduce(lambda one, other: jax.tree.map(jnp.add, one, other), trees)
        tree = jax.tree.map(lambda x: x / average, total)
        name = f"{{{','.join(map(str, steps))}}}"
    known = known_to_run(workdir, config)
    origin = f"checkpoint {workdir / 'checkpoints' / name}"
    return Weights(config, tree, mesh, _readable(known.names, config), origin, known)


def place(tree: dict[str, Any], config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
    """Put NumPy arrays that are equal in all processes on the mesh, sharded as in training."""
    abstract = abstract_state(config.model, optax.identity(), False, mesh).weights("raw")
    return jax.tree.map(_put_like, tree, abstract)


def _put_like(array: Any, like: Any) -> jax.Array:
    """Put `array`, equal in all processes, on devices with the sharding of `like`."""
    if isinstance(array, jax.Array):
        return array
    return jax.make_array_from_callback(like.shape, like.sharding, lambda part: array[part])


def _readable(names: tuple[str, ...], config: ConfigDict) -> tuple[str, ...]:
    """Return words for WordNet ids; () unless there is a name for each class."""
    if names == imagenet_wnids():
        return imagenet_names()
    return names if len(names) == config.model.num_classes else ()


def _open_data(config: ConfigDict) -> sources.Source | None:
    """Open the evaluation split of `config`; return None if it is not on this machine."""
    if config.data.source in ("digits", "synthetic"):  # opening them would generate them
        return None
    try:
        return sources.open_source(config.data, config.data.eval_split)
    except UserError:
        return None  # predictions need no data


class CheckpointReader(Checkpoints):
    """Reads checkpoints while another process may add and remove them."""

    def __init__(self, directory: Path, metric: str = "top1"):
        super().__init__(directory, metric=metric, write=False)

    def restore_chosen(self, abstract: TrainState, which: str) -> tuple[TrainState, int]:
        """Return (`restore_weights` of "latest", "best" or a step, its step).

        If the run removes the latest or best checkpoint meanwhile, choose again.
        """
        while True:
            step = self.find(which)
            try:
                return self.restore_weights(abstract, step), step
            except integrity.RemovedCheckpoint:
                if which.isdecimal():
                    raise

    def restore_weights(self, abstract: TrainState, step: int) -> TrainState:
        """Return the state at `step` without the optimizer's state, for evaluation.

        Prints a warning if the checkpoint cannot be verified. Raises RemovedCheckpoint if it is
        removed meanwhile, and UserError if its files are damaged or it has different arrays.
        """
        path = self.directory.absolute() / str(step)
        state, problem = run_on_first(lambda: integrity.check_item(path, "weights"))
        if state == "removed":
            raise integrity.RemovedCheckpoint(step)
        if state == "damaged":
            raise UserError(f"checkpoint {step} is damaged: {problem}; use another --checkpoint")
        if state == "unverified" and is_first():
            print(f"warning: {problem}", file=sys.stderr, flush=True)
        try:
            got = self._restore(step, {"weights": weights_tree(abstract)})
        except Exception as e:  # readers raise many errors if files vanish
            # In a run of several processes, the others may have read everything.
            if count() == 1 and integrity.is_being_removed(path):
                raise integrity.RemovedCheckpoint(step) from e
            raise
        return make_state(jax.numpy.int32(step), got.weights, None)


def open_to_read(workdir: Path, config: ConfigDict) -> CheckpointReader:
    """Return the checkpoints of a run of `config` in `workdir`."""
    return CheckpointReader(workdir / "checkpoints", config.checkpoint.best_metric)


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """The content of a weights file that training starts from.

    Attributes:
      params, batch_stats: nested dicts of f32 NumPy arrays. `params` has no heads if the file has
        no classifier, or one with another number of classes.
      sha256: SHA-256 of the file, in hexadecimal.
      summary: one line for the console.
      known: the classes of the file's head; None if the head is not used.
    """

    params: dict[Any, Any]
    batch_stats: dict[Any, Any]
    sha256: str
    summary: str
    known: KnownClasses | None


def read_initial_weights(config: ConfigDict) -> InitialWeights:
    """Read the weights that `config.init.weights` names; it must not be "".

    Raises UserError if the file cannot be read, or if more than the head does not fit the model.
    """
    path = catalog.locate(config.init.weights)
    origin = f"config.init.weights = {str(path)!r}"
    file = weight_file.read(path, config.init.weights_key)
    classes = state_dicts.count_classes(file.arrays, config.model.name)
    model = dict(config.model) | ({"num_classes": classes} if classes else {})
    params, batch_stats = state_dicts.from_torch(
        file.arrays, model, has_head=classes > 0, origin=origin
    )
    known, head = None, ""
    if not classes:
        head = ", which has no classifier: the head starts from random values"
    elif classes != config.model.num_classes or config.init.new_head:
        in_heads = models.family(config.model.name).in_heads
        kept = {path: v for path, v in flatten_dict(params).items() if not in_heads(path)}
        params = unflatten_dict(kept)
        head = (
            f", except for the head: it has {classes} classes there and "
            f"{config.model.num_classes} here, and starts from random values"
        )
    else:
        known = known_to_file(path, config)
    summary = f"weights of {path}{head}" + (f" ({file.note})" if file.note else "")
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return InitialWeights(params, batch_stats, digest, summary, known)


def require_its_classes(weights: InitialWeights, source: sources.Source) -> None:
    """Raise UserError if the head of the file is used and its classes are not those of the data."""
    if weights.known:
        try:
            require_same_labels(weights.known, source)
        except UserError as e:
            raise UserError(f"{e}; for other classes, --config.init.new_head=true") from e


def start_from(
    weights: InitialWeights, state: TrainState, tx: optax.GradientTransformation
) -> TrainState:
    """Return `state` with new weights, EMA weights equal to them, and a new optimizer state.

    Arrays that are not in `weights`, and all shardings, stay as they are.
    """
    params = unflatten_dict(flatten_dict(state.params) | flatten_dict(weights.params))
    make = jax.jit(
        lambda params, batch_stats: new_state(params, batch_stats, tx, state.ema is not None),
        out_shardings=get_shardings(state),
        compiler_options=xla.options(optimize=False),
    )
    return make(
        jax.tree.map(_put_like, params, state.params),
        jax.tree.map(_put_like, weights.batch_stats, state.batch_stats),
    )
