"""The recorder: writes what a run measures to console, metrics.jsonl, TensorBoard and services."""

import datetime
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from imagenet_jax.config.rules import warnings
from imagenet_jax.errors import UserError
from imagenet_jax.formatting import counted
from imagenet_jax.logs.console import ConsoleWriter
from imagenet_jax.logs.panel import Panel
from imagenet_jax.logs.throughput import Throughput, memory_limit, peak_flops, peak_memory
from imagenet_jax.logs.writers import Histogram, JsonlWriter, Writers
from imagenet_jax.runtime.processes import gather_names, is_first, run_on_first
from imagenet_jax.training.data_position import find_unrecorded_rewinds
from imagenet_jax.training.experiment import Experiment
from imagenet_jax.training.metrics import Interval, MetricWindow, shown_metrics
from imagenet_jax.training.optim import peak_learning_rate
from imagenet_jax.training.run_context import Start
from imagenet_jax.training.state import count_parameters

# Steps whose own loss and gradient norm are kept in first_steps.jsonl, to compare runs.
FIRST_STEPS = 50


class Recorder:
    """Takes the results of each step without waiting for them, and writes them when they are ready.

    Attributes:
      throughput: the speed of training.
    """

    def __init__(self, start: Start, workdir: Path, *, quiet: bool = False):
        """Continue the files in `workdir` after the step of `start`, and print what is trained.

        `quiet` prints only errors and the final result. Raises UserError if the files cannot be
        written.
        """
        run = start.run
        config = run.config
        self._config, self._epoch_at = config, run.epoch_at
        self._every, self._eval_split = config.log.every_steps, config.data.eval_split
        interval = Interval(**start.position.interval)
        self._window = MetricWindow(self._every, run.total_steps, interval, self._write_first_steps)
        devices = jax.devices()
        peak = peak_flops(devices[0].device_kind)
        self.throughput = Throughput(config.batch_size, peak and peak * len(devices))
        self._speed: dict[int, dict[str, float]] = {}
        shown = shown_metrics(len(run.source.class_names))
        self._console = ConsoleWriter(
            run.total_steps, config.batch_size, metrics=shown, quiet=quiet, silent=not is_first()
        )
        self._panel = Panel(
            f"{config.model.name}  {workdir}",
            run.total_steps,
            config.batch_size,
            start.step,
            memory_limit(),
            shown,
        )
        self._writers = Writers(self._console)
        self._first_steps: JsonlWriter | None = None
        self._evaluated: set[int] = set()
        self._began, self._seconds_before = time.monotonic(), 0.0
        if is_first():
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
        self._writers.add(history)
        # Imported here: these imports take a second, and not every run needs them.
        if config.log.tensorboard:
            from imagenet_jax.logs.tensorboard import TensorBoardWriter

            self._writers.add(TensorBoardWriter(workdir / "tensorboard", first))
        if config.log.wandb or config.log.mlflow:
            from imagenet_jax.logs.tracking import service_writers

            for writer in service_writers(config, workdir, self.warn):
                self._writers.add(writer)
        self._first_steps = JsonlWriter(workdir / "first_steps.jsonl", first)

    def start(self) -> None:
        """Show the panel, if this is a terminal, until `close`."""
        self._console.start(self._panel)

    def say(self, text: str) -> None:
        """Print a line, unless the run is quiet."""
        self._console.say(text)

    def warn(self, text: str) -> None:
        """Print a line about a problem, also if the run is quiet."""
        self._console.warn(text)

    def end(self, text: str) -> None:
        """Print the last line, and mark the run as ended in every service."""
        self._writers.end(text)

    def saving(self, step: int) -> None:
        """Show that a checkpoint of `step` is being written."""
        self._console.saved(step)

    def write(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Write one point of each curve in `values`, with the present time."""
        self._writers.write(step, split, self._now() | values)

    def _now(self) -> dict[str, Any]:
        """Return {"seconds": of training over all starts of the run, "time": UTC, ISO 8601}."""
        seconds = self._seconds_before + time.monotonic() - self._began
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        return {"seconds": round(seconds, 3), "time": now}

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """Write {name: (counts [N], edges [N + 1])}, NumPy arrays."""
        self._writers.histograms(step, histograms)

    def images(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Write one image u8[H, W, 3], or several u8[N, H, W, 3]."""
        self._writers.images(step, name, pixels)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Show on the console that an evaluation is running."""
        self._console.status("evaluating")
        yield
        self._console.status("training")

    def step(self, step: int, metrics: dict[str, jax.Array], skipped: list[str]) -> None:
        """Take the results of `step`, which was dispatched, without waiting for them.

        `skipped`: names of the images of its batch that could not be decoded.
        """
        self._console.progress(step, self.throughput.rate())
        self._window.append(step, metrics, skipped)
        if step % self._every == 0:
            self._speed[step] = self.throughput.lap() | peak_memory() | self._now()
            self.report(step - self._every)  # one interval late, so that nothing waits for it

    def report(self, upto: int) -> None:
        """Write the intervals that are complete by step `upto`.

        Raises NonFiniteError if a metric is NaN or infinite.
        """
        for last, values in self._window.fetch(upto):
            if self._config.data.undecodable == "skip":
                names = gather_names(values.get("skipped", []))
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
            self.write(step, self._eval_split, result)

    def has_evaluation(self, step: int) -> bool:
        """Return whether metrics.jsonl has the evaluation of `step` from an earlier start."""
        return run_on_first(lambda: step in self._evaluated)

    def interval(self) -> dict[str, Any]:
        """Return the sums of the unfinished interval, for a checkpoint; call `report` first."""
        return self._window.partial()

    def skipped_note(self) -> str:
        """Return how many images could not be decoded since the run began; "" if none."""
        count = self._window.skipped
        images = counted(count, "undecodable image")
        return f"; {images} skipped, named in metrics.jsonl" if count else ""

    def flush(self) -> None:
        """Put everything written so far on disk, so that a kill does not lose it.

        Raises OSError if that fails.
        """
        self._writers.flush()
        if self._first_steps:
            self._first_steps.flush()

    def close(self) -> None:
        self._writers.close()
        if self._first_steps:
            self._first_steps.close()


def headline(run: Experiment, params: dict, first: int) -> str:
    """Return one line on what is trained: model, data, length, devices and learning rate."""
    config, devices = run.config, jax.devices()
    resumed = f"; continuing after step {first}" if first else ""
    return (
        f"{config.model.name}, {count_parameters(params):,} parameters; {len(run.source):,} images "
        f"in {len(run.source.class_names)} classes; {run.total_steps:,} steps of "
        f"{config.batch_size} on {len(devices)} x {devices[0].device_kind}; peak learning rate "
        f"{peak_learning_rate(config.optim, config.batch_size):g}{resumed}"
    )
