"""From a config to the parts of training and evaluation, checked against each other."""

import dataclasses
import math
from fractions import Fraction
from typing import Any

import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imagenet_jax.config.rules import step_window
from imagenet_jax.data import pipeline, sources
from imagenet_jax.data.known_classes import KnownClasses, outputs_of
from imagenet_jax.data.sampler import Sampler, in_steps
from imagenet_jax.errors import UserError
from imagenet_jax.training import ema, optim
from imagenet_jax.training.fine_tuning import fine_tuning_of
from imagenet_jax.training.sharding import check_batch_size, make_mesh
from imagenet_jax.training.state import TrainState, abstract_state, graph_of


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What evaluating a config's model takes.

    Attributes:
      abstract: shapes and shardings of the state; `opt_state` is empty.
      outputs: i32[K], the output of the head that each label of the data means; None: the same.
    """

    config: ConfigDict
    mesh: Mesh
    source: sources.Source
    graph: nnx.GraphDef
    abstract: TrainState
    outputs: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What training a config takes.

    Attributes:
      sampler: of the records of the training split.
      steps_per_epoch: batches that the training split fills, fractional where batches run across
        epochs.
      total_steps: optimizer steps of the whole run.
      abstract: shapes and shardings of the state.
    """

    config: ConfigDict
    mesh: Mesh
    source: sources.Source
    sampler: Sampler
    evaluation: Evaluation
    graph: nnx.GraphDef
    schedule: optax.Schedule
    tx: optax.GradientTransformation
    averaging: ema.Share
    abstract: TrainState
    steps_per_epoch: Fraction
    total_steps: int

    def epoch_at(self, step: int) -> float:
        """Return the epochs of images that the first `step` steps train on."""
        return float((step + _shift(self.sampler)) / self.steps_per_epoch)

    def steps_at(self, every_epochs: float) -> set[int]:
        """Return the steps that end every `every_epochs` epochs, plus the final step.

        0: only the final step.
        """
        if not every_epochs:
            return {self.total_steps}
        if in_steps(every_epochs, self.steps_per_epoch) <= 1:
            return set(range(1, self.total_steps + 1))
        count = int(self.epoch_at(self.total_steps) / every_epochs)
        marks = {_steps(i * every_epochs, self.sampler) for i in range(1, count + 1)}
        return marks | {self.total_steps}

    @property
    def fingerprints(self) -> dict[str, str]:
        """What identifies the data of both splits."""
        c = self.config.data
        return {
            c.train_split: self.source.fingerprint,
            c.eval_split: self.evaluation.source.fingerprint,
        }


def make_evaluation(
    config: ConfigDict, mesh: Mesh | None = None, known: KnownClasses | None = None
) -> Evaluation:
    """Return what evaluating takes; with `known`, the classes of weights made elsewhere.

    The data may then have some of these classes, and in another order.

    Raises UserError where model, data and devices do not fit each other.
    """
    mesh = mesh or make_mesh(config.mesh.fsdp)
    check_batch_size("eval.batch_size", config.eval.batch_size, mesh)
    source = sources.open_source(config.data, config.data.eval_split)
    if known is None:
        _check_classes(config, source, config.data.eval_split)
    outputs = outputs_of(known, source) if known else None
    abstract = abstract_state(config.model, optax.identity(), config.ema.decay > 0, mesh)
    return Evaluation(config, mesh, source, graph_of(config.model), abstract, outputs)


def make_experiment(config: ConfigDict, mesh: Mesh | None = None) -> Experiment:
    """Raises UserError where model, data and devices do not fit each other; writes nothing."""
    mesh = mesh or make_mesh(config.mesh.fsdp)
    group = config.model.get("bn_group", 0) or 1
    check_batch_size("batch_size", config.batch_size, mesh, config.optim.grad_accum_steps, group)
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
    total = _steps(config.epochs, sampler)
    if total < 1:
        raise UserError(
            f"config.batch_size = {config.batch_size} leaves no step of the {len(source)} images "
            f"of {config.data.train_split!r}"
        )
    if total > 2**31 - 1:
        raise UserError(
            f"config.epochs = {config.epochs} is too long: it takes more than {2**31 - 1:,} steps"
        )
    window = step_window(config.profile.steps)
    if window and window[1] > total:
        raise UserError(
            f"config.profile.steps = {config.profile.steps!r} is not within the run's {total} steps"
        )
    course = _course(config, sampler)
    return Experiment(
        config=config,
        mesh=mesh,
        source=source,
        sampler=sampler,
        evaluation=evaluation,
        graph=evaluation.graph,
        abstract=abstract_state(config.model, course["tx"], config.ema.decay > 0, mesh),
        steps_per_epoch=sampler.steps_per_epoch,
        **course,
    )


def with_sampler(run: Experiment, sampler: Sampler) -> Experiment:
    """Return `run` on another order of its records, which its steps and schedules follow."""
    return dataclasses.replace(run, sampler=sampler, **_course(run.config, sampler))


def _course(config: ConfigDict, sampler: Sampler) -> dict[str, Any]:
    """Return the fields of an Experiment that depend on where its epochs lie in steps."""
    per_epoch, shift = sampler.steps_per_epoch, _shift(sampler)
    schedule = optim.make_schedule(
        config.optim,
        batch_size=config.batch_size,
        steps_per_epoch=per_epoch,
        total_steps=math.ceil(in_steps(config.epochs, per_epoch)),
        shift=shift,
    )
    tuning = fine_tuning_of(config, per_epoch)
    if shift and tuning.frozen_steps:
        frozen = max(1, round(in_steps(config.optim.freeze_epochs, per_epoch) - shift))
        tuning = tuning._replace(frozen_steps=frozen)
    return {
        "schedule": schedule,
        "tx": optim.make_optimizer(config.optim, schedule, tuning),
        "averaging": ema.make_step_size(
            config.ema,
            batch_size=config.batch_size,
            epochs=config.epochs,
            warmup_steps=math.ceil(in_steps(config.optim.warmup_epochs, per_epoch) - shift),
        ),
        "total_steps": _steps(config.epochs, sampler),
    }


def _steps(epochs: float, sampler: Sampler) -> int:
    """Return the step that completes `epochs`."""
    return math.ceil(in_steps(epochs, sampler.steps_per_epoch) - _shift(sampler))


def _shift(sampler: Sampler) -> Fraction:
    """Return `sampler.shift` in steps."""
    return Fraction(sampler.shift, sampler.batch_size)


def _check_classes(config: ConfigDict, source: sources.Source, split: str) -> None:
    found = len(source.class_names)
    if found != config.model.num_classes:
        raise UserError(
            f"config.model.num_classes = {config.model.num_classes}, but split {split!r} of "
            f"{config.data.path} has {found} classes; set --config.model.num_classes={found}"
        )
