"""What a run says while it trains: intervals of steps, evaluations, and how fast it goes."""

import datetime
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from imagenet_jax.errors import UserError
from imagenet_jax.logs.console import ConsoleWriter
from imagenet_jax.logs.panel import Panel
from imagenet_jax.logs.services import service_writers
from imagenet_jax.logs.throughput import Throughput, memory_limit, peak_flops, peak_memory
from imagenet_jax.logs.writers import Histogram, JsonlWriter, Writers
from imagenet_jax.runtime.processes import gather_names, is_first, run_on_first
from imagenet_jax.training.experiment import Experiment
from imagenet_jax.training.metrics import Interval, MetricWindow, shown_metrics

# Steps whose own loss and gradient norm are kept, for another run to be compared with.
FIRST_STEPS = 50


class Recorder:
    """Takes in what each step gives, without waiting for it, and writes it when it is there."""

    def __init__(
        self,
        run: Experiment,
        workdir: Path,
        first: int,
        interval: dict[str, Any],
        *,
        quiet: bool = False,
    ):
        """Continue after step `first`, where the sums of the interval under way were `interval`.

        `quiet` prints only errors and the final result. Raises UserError where the files cannot be
        written.
        """
        config = run.config
        self._config, self._epoch_at = config, run.epoch_at
        self._every, self._eval_split = config.log.every_steps, config.data.eval_split
        self._window = MetricWindow(
            self._every, run.total_steps, Interval(**interval), self._keep_first_steps
        )
        devices = jax.devices()
        peak = peak_flops(devices[0].device_kind)
        self._throughput = Throughput(config.batch_size, peak and peak * len(devices))
        self._speed: dict[int, dict[str, float]] = {}
        shown = shown_metrics(len(run.source.class_names))
        self._console = ConsoleWriter(
            run.total_steps, config.batch_size, metrics=shown, quiet=quiet, silent=not is_first()
        )
        self._panel = Panel(
            f"{config.model.name}  {workdir}",
            run.total_steps,
            config.batch_size,
            first,
            memory_limit(),
            shown,
        )
        self._writers = Writers(self._console)
        self._first_steps: JsonlWriter | None = None
        self._evaluated: set[int] = set()
        self._began, self._seconds_before = time.monotonic(), 0.0
        if is_first():
            try:
                self._add_files(config, workdir, first)
            except OSError as e:
                raise UserError(f"the metrics in {workdir} cannot be written: {e.strerror}") from e

    def _add_files(self, config: ConfigDict, workdir: Path, first: int) -> None:
        history = JsonlWriter(workdir / "metrics.jsonl", first)
        for record in history.records():
            self._panel.write(record["step"], record["split"], record)
            self._seconds_before = max(self._seconds_before, record.get("seconds", 0.0))
            if "weights" in record:
                self._evaluated.add(record["step"])
        self._writers.add(history)
        if config.log.tensorboard:
            # A second of imports that not every run needs.
            from imagenet_jax.logs.tensorboard import TensorBoardWriter

            self._writers.add(TensorBoardWriter(workdir / "tensorboard", first))
        for writer in service_writers(config, workdir, self.warn):
            self._writers.add(writer)
        self._first_steps = JsonlWriter(workdir / "first_steps.jsonl", first)

    def start(self) -> None:
        """Training begins; until `close` a terminal shows its panel."""
        self._console.start(self._panel)

    def say(self, text: str) -> None:
        """A line on the console."""
        self._console.say(text)

    def warn(self, text: str) -> None:
        """A line about what went wrong."""
        self._console.warn(text)

    def end(self, text: str) -> None:
        """The last line."""
        self._writers.end(text)

    def saving(self, step: int) -> None:
        """A checkpoint of `step` is being written."""
        self._console.saved(step)

    def write(self, step: int, split: str, values: dict[str, Any]) -> None:
        """One point of each curve, with the time at which it is known."""
        self._writers.write(step, split, self._now() | values)

    def _now(self) -> dict[str, Any]:
        """Return {"seconds": of training over all starts of the run, "time": UTC, ISO 8601}."""
        seconds = self._seconds_before + time.monotonic() - self._began
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        return {"seconds": round(seconds, 3), "time": now}

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """{name: (counts [N], edges [N + 1])}, of arrays on the host."""
        self._writers.histograms(step, histograms)

    def images(self, step: int, name: str, pixels: np.ndarray) -> None:
        """u8[H, W, 3] or u8[N, H, W, 3], of arrays on the host."""
        self._writers.images(step, name, pixels)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside is spent waiting for input."""
        with self._throughput.waiting():
            yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The console shows that an evaluation runs; the caller has stopped the clock."""
        self._console.status("evaluating")
        yield
        self._console.status("training")

    def stop_clock(self) -> None:
        """No step is under way: the time until the next one is done does not count."""
        self._throughput.stop_clock()

    def step(
        self,
        step: int,
        metrics: dict[str, jax.Array],
        skipped: list[str],
    ) -> None:
        """Step `step` was dispatched; `skipped` are images of its batch that were not decoded."""
        self._console.progress(step, self._throughput.rate())
        self._window.append(step, metrics, skipped)
        if step % self._every == 0:
            self._speed[step] = self._throughput.lap() | peak_memory() | self._now()
            self.report(step - self._every)  # one interval late: it is there, nobody waits

    def done(self, flops: float | None) -> None:
        """The oldest step under way is done; its operations over all devices if they are known."""
        self._throughput.done(flops)

    def report(self, upto: int) -> None:
        """Write the intervals that are complete by step `upto`; NonFiniteError if one is bad."""
        for last, values in self._window.fetch(upto):
            if self._config.data.undecodable == "skip":
                values |= _names_of_all(values.get("skipped", []))
            epoch = {"epoch": self._epoch_at(last)}
            self.write(last, "train", epoch | values | self._speed.pop(last, {}))

    def _keep_first_steps(self, step: int, values: dict[str, float]) -> None:
        if self._first_steps and step <= FIRST_STEPS:
            kept = {name: values[name] for name in ("loss", "grad_norm")}
            self._first_steps.write(step, "train", kept)

    def evaluated(self, step: int, results: list[dict[str, Any]]) -> None:
        for result in results:
            self.write(step, self._eval_split, result)

    def has_evaluation(self, step: int) -> bool:
        """Return whether metrics.jsonl has the evaluation of `step` from an earlier start."""
        return run_on_first(lambda: step in self._evaluated)

    def interval(self) -> dict[str, Any]:
        """The sums of the interval under way, to be saved with a checkpoint after `report`."""
        return self._window.partial()

    @property
    def skipped(self) -> int:
        """Images that could not be decoded since the run began."""
        return self._window.skipped

    def flush(self) -> None:
        """What was written survives a kill once this returns; OSError where it cannot."""
        self._writers.flush()
        if self._first_steps:
            self._first_steps.flush()

    def close(self) -> None:
        self._writers.close()
        if self._first_steps:
            self._first_steps.close()


def _names_of_all(skipped: list[str]) -> dict[str, list[str]]:
    """{"skipped": the names of every process}, or {} where there is none."""
    names = gather_names(skipped)
    return {"skipped": names} if names else {}
