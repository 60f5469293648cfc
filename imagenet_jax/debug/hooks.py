"""Hooks: objects that watch training from outside the step. Config fields switch them on."""

from collections.abc import Callable
from pathlib import Path

from imagenet_jax.logs.recorder import Recorder
from imagenet_jax.runtime.processes import is_first
from imagenet_jax.runtime.watchdog import Watchdog
from imagenet_jax.training.evaluate import Batches, Watched
from imagenet_jax.training.experiment import Experiment
from imagenet_jax.training.state import TrainState
from imagenet_jax.training.step import Batch, Scalars


class Hook:
    """Base class of hooks. The loop calls each method of all hooks, in every process."""

    def before_training(
        self, state: TrainState, train_step: Callable, make_batches: Callable[[int], Batches]
    ) -> None:
        """Called once, before the first step of this start.

        `make_batches(last)` reads the batches from this state to step `last` in its own pipeline.
        """

    def begin_step(self, step: int) -> None:
        """Called before the batch of `step` is read."""

    def before_update(self, step: int, state: TrainState, batch: Batch) -> None:
        """Called before `step` is dispatched, which donates `state`."""

    def after_update(self, step: int, state: TrainState, metrics: Scalars) -> None:
        """Called after `step` is dispatched, with the results that it will have."""

    def end_step(self, step: int) -> None:
        """Called after everything that follows `step`: logging, evaluation and saving."""

    def after_evaluation(self, step: int, state: TrainState, watch: Watched) -> None:
        """Called after an evaluation, before its results are recorded and the state is saved.

        Passing batches of an evaluation through `watch` lets a stop signal end it.
        """

    def close(self) -> None:
        """Called once at the end, also after an error."""


def make_hooks(
    run: Experiment, recorder: Recorder, watchdog: Watchdog, workdir: Path, first: int
) -> list[Hook]:
    """Return the hooks that `run.config` switches on, for a run that continues after `first`."""
    config = run.config
    hooks: list[Hook] = []
    if config.debug.determinism:
        from imagenet_jax.debug.determinism import DeterminismCheck

        hooks.append(DeterminismCheck(run, recorder, watchdog))
    if config.debug.nans:
        from imagenet_jax.debug.nans import NanCheck

        hooks.append(NanCheck(run))
    if config.log.images and (config.log.tensorboard or config.log.wandb or config.log.mlflow):
        from imagenet_jax.debug.pictures import Pictures

        hooks.append(Pictures(run, recorder))
    if config.log.histograms_every_epochs:
        from imagenet_jax.debug.histograms import Histograms

        hooks.append(Histograms(run, recorder))
    if config.profile.steps and is_first():
        from imagenet_jax.debug.profiling import Profiler

        hooks.append(Profiler(run, recorder, workdir, first))
    return hooks
