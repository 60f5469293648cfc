"""Means of the train step's metrics over logging intervals, computed without waiting for a step."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from imagenet_jax.errors import UserError
from imagenet_jax.training.metrics import finish_means


class NonFiniteError(UserError):
    """A loss, gradient or parameter norm was NaN or infinite after step `step`."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


@dataclasses.dataclass
class Interval:
    """Sums over the steps of one logging interval; saved with a checkpoint, to lose none.

    Attributes:
      count: steps.
      sums: of each metric.
      skipped: names of images that could not be decoded.
      skipped_before: how many there were in earlier intervals.
    """

    count: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    skipped: list[str] = dataclasses.field(default_factory=list)
    skipped_before: int = 0

    def add(self, values: dict[str, float], skipped: list[str]) -> None:
        # Only what every step of the interval has: a restart may turn metrics on or off.
        kept = self.sums if self.count else dict.fromkeys(values, 0.0)
        self.sums = {n: total + values[n] for n, total in kept.items() if n in values}
        self.count += 1
        self.skipped += skipped

    def summary(self) -> dict[str, Any]:
        """Return the values of metrics over the interval and, if any, the skipped images' names."""
        means = {name: total / self.count for name, total in self.sums.items()}
        return finish_means(means) | ({"skipped": self.skipped} if self.skipped else {})

    def next(self) -> "Interval":
        return Interval(skipped_before=self.skipped_before + len(self.skipped))


class MetricWindow:
    """Averages the metrics of steps, and leaves them on the device until they are computed.

    `append` takes a step's device scalars without touching them; `fetch(upto)` brings over those
    of steps <= upto and returns the intervals that are complete: every `every` steps, and at `end`.
    `on_step` gets the values of each step that was brought over.
    """

    def __init__(
        self,
        every: int,
        end: int,
        partial: Interval | None = None,
        on_step: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    ):
        self._every, self._end, self._on_step = every, end, on_step
        self._pending: list[tuple[int, dict[str, jax.Array], list[str]]] = []
        self._interval = partial or Interval()

    def append(self, step: int, metrics: dict[str, jax.Array], skipped: list[str]) -> None:
        """`skipped` are the images of the step's batch that could not be decoded."""
        self._pending.append((step, metrics, skipped))

    def fetch(self, upto: int) -> list[tuple[int, dict[str, Any]]]:
        """Return [(last step, summary)] of each interval completed at a step <= upto.

        Raises NonFiniteError at the first step whose metrics are not all finite.
        """
        due = [entry for entry in self._pending if entry[0] <= upto]
        self._pending = self._pending[len(due) :]
        complete = []
        for step, metrics, skipped in jax.device_get(due):
            values = {name: float(value) for name, value in metrics.items()}
            _require_finite(step, values)
            self._on_step(int(step), values)
            self._interval.add(values, skipped)
            if step % self._every == 0 or step == self._end:
                # The rate is a setting, not a measurement: the last one, not the mean.
                last = {"learning_rate": values["learning_rate"]}
                complete.append((int(step), self._interval.summary() | last))
                self._interval = self._interval.next()
        return complete

    @property
    def skipped(self) -> int:
        """How many images were skipped since the run began, counted again in each epoch."""
        return self._interval.skipped_before + len(self._interval.skipped)

    def partial(self) -> dict[str, Any]:
        """Return the sums of the unfinished interval, as plain values (call `fetch` first)."""
        return dataclasses.asdict(self._interval)


def _require_finite(step: int, values: dict[str, float]) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{name} is {value} at step {step}, learning rate {values['learning_rate']:.4g}; "
                "the last checkpoint is kept: lower config.optim.base_lr, warm up longer, or set "
                "config.optim.grad_clip_norm; --config.nonfinite.policy=rewind skips the batches "
                "before it",
                int(step),
            )
