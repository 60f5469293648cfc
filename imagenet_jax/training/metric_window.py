"""Means of training metrics over logging intervals, without waiting for the device at each step."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from imagenet_jax.errors import UserError
from imagenet_jax.training.metrics import finish_means


class NonFiniteError(UserError):
    """A metric, such as the loss or a norm, was NaN or infinite after `step`."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


@dataclasses.dataclass
class Interval:
    """Sums over the steps of a logging interval. A checkpoint stores those of an unfinished one.

    Attributes:
      count: number of steps.
      sums: sum of each metric.
      skipped: names of images that could not be decoded.
      skipped_before: number of such images in earlier intervals.
    """

    count: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    skipped: list[str] = dataclasses.field(default_factory=list)
    skipped_before: int = 0

    def add(self, values: dict[str, float], skipped: list[str]) -> None:
        # Keep only metrics that every step of the interval has: a restart may turn some on or off.
        kept = self.sums if self.count else dict.fromkeys(values, 0.0)
        self.sums = {n: total + values[n] for n, total in kept.items() if n in values}
        self.count += 1
        self.skipped += skipped

    def summary(self) -> dict[str, Any]:
        """Return the metrics over the interval and, if there are any, the skipped images."""
        means = {name: total / self.count for name, total in self.sums.items()}
        return finish_means(means) | ({"skipped": self.skipped} if self.skipped else {})

    def next(self) -> "Interval":
        return Interval(skipped_before=self.skipped_before + len(self.skipped))


class MetricWindow:
    """Averages training metrics, and leaves them on the device until they are needed.

    `append` stores the device scalars of a step. `fetch(upto)` copies those of steps <= upto to the
    host, calls `on_step` with the values of each step, and returns the completed intervals, which
    end every `every` steps and at step `end`.
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
        """Store the metrics of a step. `skipped` are names of images that could not be decoded."""
        self._pending.append((step, metrics, skipped))

    def fetch(self, upto: int) -> list[tuple[int, dict[str, Any]]]:
        """Return (last step, summary) of each interval that ends at a step <= upto.

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
                # The learning rate is a setting: log the last one, not the mean.
                last = {"learning_rate": values["learning_rate"]}
                complete.append((int(step), self._interval.summary() | last))
                self._interval = self._interval.next()
        return complete

    @property
    def skipped(self) -> int:
        """Number of images skipped since the start of the run, counted again in each epoch."""
        return self._interval.skipped_before + len(self._interval.skipped)

    def partial(self) -> dict[str, Any]:
        """Return the unfinished interval as a dict of plain values. Call `fetch` first."""
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
