"""Hooks: objects that observe training from outside the step. Config fields enable them."""

import contextlib
import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jax.experimental import checkify

from imagenet_jax.config.rules import step_window
from imagenet_jax.errors import UserError
from imagenet_jax.logs.recorder import Recorder
from imagenet_jax.runtime import xla
from imagenet_jax.runtime.processes import is_first
from imagenet_jax.runtime.stopping import Watchdog
from imagenet_jax.training.evaluate import Batches, Watched
from imagenet_jax.training.experiment import Experiment
from imagenet_jax.training.sharding import replicated
from imagenet_jax.training.state import TrainState, copy_state
from imagenet_jax.training.step import Batch, Scalars, train_step


class Hook:
    """Base class of hooks. The training loop calls each method of every hook, in every process."""

    def before_training(
        self, state: TrainState, train_step: Callable, make_batches: Callable[[int], Batches]
    ) -> None:
        """Called once, before the first step after a start or restart.

        `make_batches(last)` returns the batches from here to step `last`, from a new pipeline.
        """

    def begin_step(self, step: int) -> None:
        """Called before the batch of `step` is read."""

    def before_update(self, step: int, state: TrainState, batch: Batch) -> None:
        """Called before `step` is dispatched, which donates `state`."""

    def after_update(self, step: int, state: TrainState, metrics: Scalars) -> None:
        """Called after `step` is dispatched, with its results, which may not be computed yet."""

    def end_step(self, step: int) -> None:
        """Called after `step` and the logging, evaluation and saving that follow it."""

    def after_evaluation(self, step: int, state: TrainState, watch: Watched) -> None:
        """Called after an evaluation, before its results are recorded and the state is saved.

        A hook that evaluates must pass the batches through `watch`, so that stop signals end it.
        """

    def close(self) -> None:
        """Called once at the end, also after an error."""


# Packages whose stack frames do not show which line of the model caused an operation.
_LIBRARIES = tuple(path for package in (jax, flax, optax) for path in package.__path__)


class NanCheck(Hook):
    """Raises UserError after a step whose results contain a NaN.

    The compiled step and its results do not change. Training waits for each step and keeps a copy
    of the state from before it. A step with a NaN runs again from that copy, with each operation
    checked by `jax.experimental.checkify`, and the message names the first operation that fails.
    """

    def __init__(self, run: Experiment):
        self._run = run
        self._has_nan = jax.jit(
            lambda tree: jnp.stack([jnp.isnan(x).any() for x in jax.tree.leaves(tree)]).any(),
            out_shardings=replicated(run.mesh),
        )

    def before_update(self, step: int, state: TrainState, batch: Batch) -> None:
        self._before, self._batch = copy_state(state), batch

    def after_update(self, step: int, state: TrainState, metrics: Scalars) -> None:
        if self._has_nan((state, metrics)):
            origin = _find_origin(self._run, self._before, self._batch)
            raise UserError(f"NaN at step {step}: {origin}; the last checkpoint is kept")


def _find_origin(run: Experiment, state: TrainState, batch: Batch) -> str:
    """Return the operation that produced the first NaN in the step from `state`, and its line."""
    step = functools.partial(train_step, parts=run.parts)
    checked = checkify.checkify(step, errors=checkify.nan_checks)
    locate = jax.jit(
        lambda state, batch: checked(state, batch)[0],
        out_shardings=replicated(run.mesh),
        compiler_options=xla.options(optimize=False),
    )
    error = locate(state, batch).get_exception()
    if error is None:
        return (
            "it did not occur again when the step was repeated with each operation checked; see "
            "--config.debug.determinism"
        )
    return f"first in the operation {error.prim}, or its gradient, at {_find_line(error)}"


def _find_line(error: Any) -> str:
    """Return "file:line (function)" of the innermost stack frame outside `_LIBRARIES`."""
    frames = traceback.extract_tb(error.traceback_info.as_python_traceback())
    ours = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    frame = (ours or frames)[-1]
    return f"{frame.filename}:{frame.lineno} ({frame.name})"


_ADVICE = (
    "on GPUs, set XLA_FLAGS=--xla_gpu_deterministic_ops=true and start again; elsewhere, suspect "
    "the model or faulty memory"
)


class DeterminismCheck(Hook):
    """Before training, runs the next config.debug.determinism steps twice and compares the bits.

    Batches, metrics and all arrays of the state are compared after each step. Training continues
    from the original state, so that three states are in memory during the check.
    """

    def __init__(self, run: Experiment, recorder: Recorder, watchdog: Watchdog):
        self._run, self._recorder, self._watchdog = run, recorder, watchdog
        self._same = jax.jit(_same_bits, out_shardings=replicated(run.mesh))

    def before_training(
        self, state: TrainState, train_step: Callable, make_batches: Callable[[int], Batches]
    ) -> None:
        """Run the check. Raises UserError, naming the first step and array that differ."""
        first = int(state.step)
        last = min(first + self._run.config.debug.determinism, self._run.total_steps)
        if first >= last:
            return
        one, two = copy_state(state), copy_state(state)
        pairs = zip(make_batches(last), make_batches(last), strict=True)
        for step, (a, b) in enumerate(pairs, first + 1):
            if a.pop("skipped", []) != b.pop("skipped", []):
                raise UserError(f"batch {step} skips different images when it is read again")
            if names := self._find_different(a, b):
                raise UserError(
                    f"batch {step} is not repeatable: {_summarize(names)} when the pipeline runs "
                    "again; suspect the storage or the image decoder"
                )
            one, metrics_one = train_step(one, a)
            two, metrics_two = train_step(two, b)
            if names := self._find_different((metrics_one, one), (metrics_two, two)):
                names = [name.split(".", 1)[1] for name in names]  # without the index in the pair
                raise UserError(
                    f"step {step} is not repeatable: {_summarize(names)} when it runs again from "
                    f"the same state and batch; {_ADVICE}"
                )
            self._watchdog.beat()
        self._recorder.say(f"repeatable: steps {first + 1} to {last} ran twice with the same bits")

    def _find_different(self, a: Any, b: Any) -> list[str]:
        """Return the names of the arrays that differ between two trees."""
        same = jax.tree_util.tree_leaves_with_path(jax.device_get(self._same(a, b)))
        name = jax.tree_util.keystr
        return [name(path, simple=True, separator=".") for path, equal in same if not equal]


def _same_bits(a: Any, b: Any) -> Any:
    """Return a tree of bool[]: whether each pair of arrays has the same bits."""

    def bits(x: jax.Array) -> jax.Array:
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return x.view(f"uint{8 * x.dtype.itemsize}") if floating else x

    return jax.tree.map(lambda x, y: jnp.all(bits(x) == bits(y)), a, b)


def _summarize(names: list[str]) -> str:
    others = f" and {len(names) - 1} other arrays have" if len(names) > 1 else " has"
    return f"{names[0]}{others} different bits"


class Profiler(Hook):
    """Traces the steps of config.profile.steps. Used only in process 0.

    Files are plugins/profile/TIME/HOST.xplane.pb in workdir/profile, which is the logdir for
    TensorBoard's profile plugin and xprof, and HOST.trace.json.gz, for https://ui.perfetto.dev. The
    annotation "train" of each step, with its step_num, covers reading the batch, logging and
    saving.
    """

    def __init__(self, recorder: Recorder, directory: Path, window: tuple[int, int], steps: range):
        """Trace the steps of `window` that are in `steps`, which this start trains."""
        self._recorder, self._directory = recorder, directory
        self._first, self._last = window
        self._traced: list[int] = []  # steps in the running trace
        self._annotation = contextlib.ExitStack()
        if steps and self._last < steps[0]:
            recorder.say(
                f"no trace: steps {self._first}:{self._last} are before step {steps[0]}, at which "
                "this run continues"
            )

    def begin_step(self, step: int) -> None:
        if not self._first <= step <= self._last:
            return
        if not self._traced:
            self._recorder.throughput.drain()
            options = jax.profiler.ProfileOptions()
            # Python calls are a million events, more than the viewers can show.
            options.python_tracer_level = 0
            jax.profiler.start_trace(self._directory, profiler_options=options)
        self._traced.append(step)
        annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
        self._annotation.enter_context(annotation)

    def end_step(self, step: int) -> None:
        self._annotation.close()
        if step == self._last:
            self.close()

    def close(self) -> None:
        """Write the trace in progress, if any. Errors are reported and do not stop training."""
        self._annotation.close()
        if not self._traced:
            return
        steps, self._traced = f"{self._traced[0]} to {self._traced[-1]}", []
        try:
            self._recorder.throughput.drain()
            jax.profiler.stop_trace()
            newest = max(self._directory.glob("plugins/profile/*/*.trace.json.gz"))
            self._recorder.say(
                f"trace of steps {steps}: open it with tensorboard --logdir={self._directory} "
                f"(profile plugin), or open this file at https://ui.perfetto.dev: {newest}"
            )
        except (OSError, RuntimeError, ValueError) as e:
            self._recorder.say(f"the trace of steps {steps} could not be written: {e}")


def make_hooks(
    run: Experiment, recorder: Recorder, watchdog: Watchdog, workdir: Path, first: int
) -> list[Hook]:
    """Return the hooks that `run.config` enables, for a run that continues after step `first`."""
    config = run.config
    hooks: list[Hook] = []
    if config.debug.determinism:
        hooks.append(DeterminismCheck(run, recorder, watchdog))
    if config.debug.nans:
        hooks.append(NanCheck(run))
    if config.log.images and (config.log.tensorboard or config.log.wandb or config.log.mlflow):
        from imagenet_jax.debug.pictures import Pictures

        hooks.append(Pictures(run, recorder))
    if config.log.histograms_every_epochs:
        from imagenet_jax.debug.histograms import Histograms

        hooks.append(Histograms(run, recorder))
    window = step_window(config.profile.steps)
    if window and is_first():
        steps = range(first + 1, run.total_steps + 1)
        hooks.append(Profiler(recorder, workdir / "profile", window, steps))
    return hooks
