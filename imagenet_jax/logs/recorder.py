"""Recording metrics and saving checkpoints during training.

The recorder writes metrics to the console, metrics.jsonl, TensorBoard and tracking services. The
saver writes checkpoints, and reports failed saves without stopping.
"""

import datetime
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from imagenet_jax.config.rules import warnings
from imagenet_jax.errors import UserError
from imagenet_jax.formatting import counted
from imagenet_jax.logs.console import ConsoleWriter, Panel
from imagenet_jax.logs.throughput import Throughput, memory_limit, peak_flops, peak_memory
from imagenet_jax.logs.writers import JsonlWriter, Values, Writers
from imagenet_jax.progress import announce
from imagenet_jax.runtime import processes
from imagenet_jax.training.checkpoint import Checkpoints, Position
from imagenet_jax.training.data_position import (
    BatchOrder,
    find_unrecorded_rewinds,
    get_data_position,
)
from imagenet_jax.training.experiment import Experiment
from imagenet_jax.training.metric_window import Interval, MetricWindow
from imagenet_jax.training.metrics import shown_metrics
from imagenet_jax.training.run_context import Start
from imagenet_jax.training.schedules import peak_learning_rate
from imagenet_jax.training.state import TrainState, count_parameters

# Number of steps whose loss and gradient norm are written to first_steps.jsonl, to compare runs.
FIRST_STEPS = 50


class Recorder(Writers):
    """Accepts the results of each step without waiting, and writes them when they are ready.

    Attributes:
      throughput: the speed of training.
    """

    def __init__(self, start: Start, workdir: Path, *, quiet: bool = False):
        """Continue the files in `workdir` after the step of `start`, and print a summary.

        `quiet` prints only errors and the final result. Raises UserError if the files cannot be
        written.
        """
        run = start.run
        config = run.config
        self._config, self._epoch_at, self._every = config, run.epoch_at, config.log.every_steps
        interval = Interval(**start.position.interval)
        self._window = MetricWindow(self._every, run.total_steps, interval, self._write_first_steps)
        devices = jax.devices()
        peak = peak_flops(devices[0].device_kind)
        self.throughput = Throughput(config.batch_size, peak and peak * len(devices))
        self._speed: dict[int, dict[str, float]] = {}
        self._panel = Panel(
            f"{config.model.name}  {workdir}",
            run.total_steps,
            config.batch_size,
            start.step,
            memory_limit(),
            shown_metrics(len(run.source.class_names)),
        )
        self._console = ConsoleWriter(self._panel, quiet=quiet, silent=not processes.is_first())
        super().__init__(self._console)
        self._first_steps: JsonlWriter | None = None
        self._evaluated: set[int] = set()
        self._began, self._seconds_before = time.monotonic(), 0.0
        if processes.is_first():
            try:
                self._add_files(config, workdir, start.step)
            except OSError as e:
                raise UserError(f"the metrics in {workdir} cannot be written: {e.strerror}") from e
            for values in find_unrecorded_rewinds(start.rewinds, workdir / "metrics.jsonl"):
                self.write(start.step, "rewind", values)
        self._announce(start)

    def _announce(self, start: Start) -> None:
        self.say(headline(start.run, start.state.params, start.step))
        if start.warning:
            self.warn(start.warning)
        for warning in warnings(start.run.config):
            self.warn(f"warning: {warning}")
        if start.origin:
            self.say(f"starting from {start.origin}")
        if start.step < start.run.frozen_steps:
            from imagenet_jax.training.layer_groups import describe_frozen_phase

            self.say(describe_frozen_phase(start.run.config, start.run.frozen_steps, start.step))

    def _add_files(self, config: ConfigDict, workdir: Path, first: int) -> None:
        history = JsonlWriter(workdir / "metrics.jsonl", first)
        for record in history.records():
            self._panel.write(record["step"], record["split"], record)
            self._seconds_before = max(self._seconds_before, record.get("seconds", 0.0))
            if "weights" in record:
                self._evaluated.add(record["step"])
        self.add(history)
        # Imported here: these imports take a second, and not every run needs them.
        if config.log.tensorboard:
            from imagenet_jax.logs.tensorboard import TensorBoardWriter

            self.add(TensorBoardWriter(workdir / "tensorboard", first))
        if config.log.wandb or config.log.mlflow:
            from imagenet_jax.logs.trackers import open_trackers

            for writer in open_trackers(config, workdir, self.warn):
                self.add(writer)
        self._first_steps = JsonlWriter(workdir / "first_steps.jsonl", first)

    def start(self) -> None:
        """Show the panel until `close`, if the output is a terminal."""
        self._console.start()

    def say(self, text: str) -> None:
        """Print a line, unless the run is quiet."""
        self._console.say(text)

    def warn(self, text: str) -> None:
        """Print a line about a problem, even if the run is quiet."""
        self._console.warn(text)

    def saving(self, step: int) -> None:
        """Show that a checkpoint of `step` is being written."""
        self._panel.saved(step)

    def write(self, step: int, split: str, values: Values) -> None:
        """Write one point of each curve in `values`, with the current time."""
        super().write(step, split, {**self._now(), **values})

    def _now(self) -> dict[str, Any]:
        """Return {"seconds": of training over all starts of the run, "time": UTC, ISO 8601}."""
        seconds = self._seconds_before + time.monotonic() - self._began
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        return {"seconds": round(seconds, 3), "time": now}

    def compiling(self) -> AbstractContextManager[None]:
        """Show on the console that the train step is being compiled."""
        return self._announce_work("compiling the train step")

    def _announce_work(self, work: str) -> AbstractContextManager[None]:
        # On standard output, like the other lines. The panel shows its status itself.
        return announce(work, quiet=not self._console.prints_lines, stderr=False)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Show on the console that an evaluation is running."""
        self._panel.status = "evaluating"
        with self._announce_work("evaluating"):
            yield
        self._panel.status = "training"

    def step(self, step: int, metrics: dict[str, jax.Array], skipped: list[str]) -> None:
        """Accept the results of `step`, which has been dispatched, without waiting for them.

        `skipped` has the names of images in its batch that could not be decoded.
        """
        self._panel.progress(step, self.throughput.rate())
        self._window.append(step, metrics, skipped)
        if step % self._every == 0:
            self._speed[step] = self.throughput.lap() | peak_memory() | self._now()
            self.report(step - self._every)  # one interval late, so that nothing waits for it

    def report(self, upto: int) -> None:
        """Write the intervals that are complete at step `upto`.

        Raises NonFiniteError if a metric is NaN or infinite.
        """
        for last, values in self._window.fetch(upto):
            if self._config.data.undecodable == "skip":
                names = processes.gather_names(values.get("skipped", []))
                values |= {"skipped": names} if names else {}
            epoch = {"epoch": self._epoch_at(last)}
            self.write(last, "train", epoch | values | self._speed.pop(last, {}))

    def _write_first_steps(self, step: int, values: dict[str, float]) -> None:
        if self._first_steps and step <= FIRST_STEPS:
            kept = {name: values[name] for name in ("loss", "grad_norm")}
            self._first_steps.write(step, "train", kept)

    def evaluated(self, step: int, results: list[dict[str, Any]]) -> None:
        """Write the results of an evaluation after `step`."""
        for result in results:
            self.write(step, self._config.data.eval_split, result)

    def has_evaluation(self, step: int) -> bool:
        """Return whether metrics.jsonl has the evaluation of `step` from an earlier start."""
        return processes.run_on_first(lambda: step in self._evaluated)

    def interval(self) -> dict[str, Any]:
        """Return the sums of the unfinished interval, for a checkpoint. Call `report` first."""
        return self._window.partial()

    def skipped_note(self) -> str:
        """Return a note about the images of the run that could not be decoded, or ""."""
        count = self._window.skipped
        images = counted(count, "undecodable image")
        return f"; {images} skipped, named in metrics.jsonl" if count else ""

    def flush(self) -> None:
        """Flush everything written so far to disk, so that it survives a kill.

        Raises OSError if that fails.
        """
        super().flush()
        if self._first_steps:
            self._first_steps.flush()

    def close(self) -> None:
        super().close()
        if self._first_steps:
            self._first_steps.close()


def headline(run: Experiment, params: dict, first: int) -> str:
    """Return a one-line summary of the run: model, data, length, devices and learning rate."""
    config, devices = run.config, jax.devices()
    resumed = f"; continuing after step {first}" if first else ""
    return (
        f"{config.model.name}, {count_parameters(params):,} parameters; {len(run.source):,} images "
        f"in {len(run.source.class_names)} classes; {run.total_steps:,} steps of "
        f"{config.batch_size} on {len(devices)} x {devices[0].device_kind}; peak learning rate "
        f"{peak_learning_rate(config.optim, config.batch_size):g}{resumed}"
    )


class Saver:
    """Saves a checkpoint only after everything recorded up to its step is on disk."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        recorder: Recorder,
        run: Experiment,
        batch_order: BatchOrder,
        provenance: dict[str, Any],
    ):
        self._checkpoints, self._recorder = checkpoints, recorder
        self._run, self._batch_order, self._provenance = run, batch_order, provenance

    def save(
        self, state: TrainState, step: int, results: list[dict] | None, *, required: bool
    ) -> None:
        """Start saving the state after `step`, which may be donated afterwards.

        Args:
          results: evaluation results of the state, which rank the checkpoint.
          required: wait until it is saved, and try once more if that fails.

        Raises NonFiniteError if a metric up to `step` is not finite, and UserError if a required
        save fails twice.
        """
        self._recorder.report(step)
        self._start(state, step, results)
        if not required:
            return
        if step not in self._wait():
            self._start(state, step, results)
            kept = self._wait()
            if step not in kept:
                newest = f"the newest checkpoint is of step {kept[-1]}" if kept else None
                raise UserError(
                    f"step {step} could not be saved in {self._checkpoints.directory}: "
                    f"{newest or 'there is no checkpoint'}; make space and start the same command "
                    "again"
                )

    def add_results(self, step: int, results: list[dict], *, required: bool) -> None:
        """Add evaluation results to the checkpoint that an earlier start saved at `step`.

        If that fails, raise UserError if `required`, otherwise report it.
        """
        if self._flush(step):
            self._checkpoints.add_metrics(step, _select_numbers(results[0]))
        self.report_failures()
        if required and self._checkpoints.lacks_metrics(step):
            raise UserError(
                f"the evaluation of step {step} could not be saved in "
                f"{self._checkpoints.directory}; make space and start the same command again"
            )

    def report_failures(self) -> None:
        """Print a line for each save that has failed since the last call."""
        for failure in self._checkpoints.failures():
            self._recorder.warn(failure)

    def _start(self, state: TrainState, step: int, results: list[dict] | None) -> None:
        if not self._flush(step):
            return
        data = get_data_position(self._run.sampler, self._batch_order.batch_at(step) + 1)
        self._checkpoints.save(
            state,
            Position(data=data, interval=self._recorder.interval()),
            config=self._run.config.to_dict(),
            provenance=self._provenance,
            metrics=_select_numbers(results[0]) if results else None,
        )
        self._recorder.saving(step)

    def _wait(self) -> list[int]:
        """Wait for the save in progress, report failures, and return the steps that are saved."""
        self._checkpoints.wait()
        self.report_failures()
        return self._checkpoints.steps()

    def _flush(self, step: int) -> bool:
        """Flush the recorder's files. Return whether checkpoint `step` may be written."""
        try:
            self._recorder.flush()
        except OSError as e:
            self._recorder.warn(
                f"checkpoint {step} not saved, because metrics.jsonl cannot be written: "
                f"{e.strerror}"
            )
            # The other processes have started to save and would wait for this one.
            return processes.count() > 1
        return True


def _select_numbers(result: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in result.items() if isinstance(value, int | float)}
