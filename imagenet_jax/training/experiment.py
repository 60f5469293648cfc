"""What training and evaluating a config need, checked for consistency before any work is done."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imagenet_jax.config.rules import step_window
from imagenet_jax.data import pipeline, sources
from imagenet_jax.data.classes import KnownClasses, find_outputs
from imagenet_jax.data.sampler import Sampler, in_steps
from imagenet_jax.errors import UserError
from imagenet_jax.models import resolve_norm_impl
from imagenet_jax.training import optim, schedules
from imagenet_jax.training.layer_groups import make_fine_tuning
from imagenet_jax.training.sharding import check_batch_size, check_train_batch, make_mesh
from imagenet_jax.training.state import (
    TrainState,
    abstract_state,
    inference_graph,
    make_ema_step_size,
    model_graph,
)
from imagenet_jax.training.step import StepParts

_MAX_STEPS = 2**31 - 1  # the step counter is an int32


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Everything that evaluating the model of a config needs.

    Attributes:
      abstract: shapes and shardings of the state, with an empty `opt_state`.
      outputs: i32[K], index of the logit for each label of the data; None: label i is logit i.
    """

    config: ConfigDict
    mesh: Mesh
    source: sources.Source
    graph: nnx.GraphDef
    abstract: TrainState
    outputs: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that training a config needs.

    Attributes:
      source, sampler: the training split and the order of its records.
      parts: the model, optimizer, schedule and EMA of the train step.
      abstract: shapes and shardings of the state.
      total_steps: optimizer steps of the whole run.
    """

    config: ConfigDict
    mesh: Mesh
    source: sources.Source
    sampler: Sampler
    evaluation: Evaluation
    parts: StepParts
    abstract: TrainState
    total_steps: int

    @property
    def steps_per_epoch(self) -> Fraction:
        """Batches per epoch; fractional if batches can span two epochs."""
        return self.sampler.steps_per_epoch

    @property
    def frozen_steps(self) -> int:
        """Steps that train only the head; 0: all layers train from the start."""
        shift = _shift(self.sampler)
        return make_fine_tuning(self.config, self.steps_per_epoch, shift).frozen_steps

    def epoch_at(self, step: int) -> float:
        """Return the number of epochs after `step` steps."""
        return float((step + _shift(self.sampler)) / self.steps_per_epoch)

    def steps_at(self, every_epochs: float) -> set[int]:
        """Return the steps at the end of every `every_epochs` epochs, and the final step.

        With `every_epochs` = 0, only the final step.
        """
        if not every_epochs:
            return {self.total_steps}
        if in_steps(every_epochs, self.steps_per_epoch) <= 1:
            return set(range(1, self.total_steps + 1))
        count = int(self.epoch_at(self.total_steps) / every_epochs)
        marks = {_last_step(i * every_epochs, self.sampler) for i in range(1, count + 1)}
        return marks | {self.total_steps}

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprints of the training and the evaluation split."""
        c = self.config.data
        return {
            c.train_split: self.source.fingerprint,
            c.eval_split: self.evaluation.source.fingerprint,
        }

    def with_sampler(self, sampler: Sampler) -> "Experiment":
        """Return this experiment with another sampler, and the steps and schedules for it."""
        parts = make_step_parts(
            self.config, sampler.steps_per_epoch, self.mesh, shift=_shift(sampler)
        )
        total = _last_step(self.config.epochs, sampler)
        return dataclasses.replace(self, sampler=sampler, parts=parts, total_steps=total)


def make_evaluation(
    config: ConfigDict, mesh: Mesh | None = None, known: KnownClasses | None = None
) -> Evaluation:
    """Build everything that evaluating `config` needs.

    `known` are the classes of weights that were trained elsewhere. The data may have only some of
    these classes, and in another order.

    Raises UserError if model, data and devices do not fit together.
    """
    mesh = mesh or make_mesh(config.mesh.fsdp)
    check_batch_size("eval.batch_size", config.eval.batch_size, mesh)
    source = sources.open_source(config.data, config.data.eval_split)
    if known is None:
        _check_classes(config, source, config.data.eval_split)
    outputs = find_outputs(known, source) if known else None
    abstract = abstract_state(config.model, optax.identity(), config.ema.decay > 0, mesh)
    return Evaluation(config, mesh, source, inference_graph(config.model), abstract, outputs)


def make_experiment(config: ConfigDict, mesh: Mesh | None = None) -> Experiment:
    """Build everything that training `config` needs. No files are written.

    Raises UserError if model, data and devices do not fit together.
    """
    mesh = mesh or make_mesh(config.mesh.fsdp)
    check_train_batch(config, mesh)
    source = sources.open_source(config.data, config.data.train_split)
    _check_classes(config, source, config.data.train_split)
    evaluation = make_evaluation(config, mesh)
    if source.class_names != evaluation.source.class_names:
        raise UserError(
            f"splits {config.data.train_split!r} and {config.data.eval_split!r} of "
            f"{config.data.path} have different classes"
        )
    sampler = pipeline.make_sampler(
        source, config.data, seed=config.seed, batch_size=config.batch_size
    )
    total = _last_step(config.epochs, sampler)
    _check_length(config, source, total)
    parts = make_step_parts(config, sampler.steps_per_epoch, mesh)
    abstract = abstract_state(config.model, parts.tx, config.ema.decay > 0, mesh)
    return Experiment(config, mesh, source, sampler, evaluation, parts, abstract, total)


def make_step_parts(
    config: ConfigDict,
    steps_per_epoch: Fraction | int,
    mesh: Mesh | None = None,
    *,
    shift: Fraction | int = 0,
) -> StepParts:
    """Build the model, optimizer, schedule and EMA of the train step.

    The step is compiled for the devices of `mesh`; None: those of the default backend. `shift` is
    `Sampler.shift` in steps, which is nonzero if an earlier part of the run had another batch size.
    """
    schedule = schedules.make_schedule(
        config.optim,
        batch_size=config.batch_size,
        steps_per_epoch=steps_per_epoch,
        total_steps=math.ceil(in_steps(config.epochs, steps_per_epoch)),
        shift=shift,
    )
    warmup = math.ceil(in_steps(config.optim.warmup_epochs, steps_per_epoch) - shift)
    step_size = make_ema_step_size(config, warmup)
    tuning = make_fine_tuning(config, steps_per_epoch, shift)
    tx = optim.make_optimizer(config.optim, schedule, tuning)
    platform = mesh.devices.flat[0].platform if mesh else ""
    graph = model_graph(resolve_norm_impl(config.model, platform))
    return StepParts(config, graph, tx, schedule, step_size)


def _last_step(epochs: float, sampler: Sampler) -> int:
    """Return the step that completes `epochs`."""
    return math.ceil(in_steps(epochs, sampler.steps_per_epoch) - _shift(sampler))


def _shift(sampler: Sampler) -> Fraction:
    """Return `sampler.shift` in steps."""
    return Fraction(sampler.shift, sampler.batch_size)


def _check_length(config: ConfigDict, source: sources.Source, total_steps: int) -> None:
    if total_steps < 1:
        raise UserError(
            f"config.batch_size = {config.batch_size} leaves no step: split "
            f"{config.data.train_split!r} has {len(source)} images"
        )
    if total_steps > _MAX_STEPS:
        raise UserError(
            f"config.epochs = {config.epochs} is too long: it takes more than {_MAX_STEPS:,} steps"
        )
    window = step_window(config.profile.steps)
    if window and window[1] > total_steps:
        raise UserError(
            f"config.profile.steps = {config.profile.steps!r} is not within the run's "
            f"{total_steps} steps"
        )


def _check_classes(config: ConfigDict, source: sources.Source, split: str) -> None:
    found = len(source.class_names)
    if found != config.model.num_classes:
        raise UserError(
            f"config.model.num_classes = {config.model.num_classes}, but split {split!r} of "
            f"{config.data.path} has {found} classes; set --config.model.num_classes={found}"
        )
