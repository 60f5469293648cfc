"""How fast the loop goes, and how much of its time it waits for input."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Throughput:
    """Wall time per interval of steps; evaluation and compilation are left out."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._started: float | None = None
        self._steps, self._waited, self._paused = 0, 0.0, 0.0

    def step(self) -> None:
        """A step was dispatched; the clock starts after the first, which compiles."""
        if self._started is None:
            self._restart()
        else:
            self._steps += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside is spent waiting for input."""
        before = time.perf_counter()
        yield
        if self._started is not None:
            self._waited += time.perf_counter() - before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count."""
        before = time.perf_counter()
        yield
        self._paused += time.perf_counter() - before

    def lap(self) -> dict[str, float]:
        """images_per_second and input_wait (share of time) since the last lap; {} before both."""
        values = {}
        if self._started is not None and self._steps:
            elapsed = time.perf_counter() - self._started - self._paused
            values = {
                "images_per_second": self._steps * self._batch_size / elapsed,
                "input_wait": self._waited / elapsed,
            }
        self._restart()
        return values

    def _restart(self) -> None:
        self._started = time.perf_counter()
        self._steps, self._waited, self._paused = 0, 0.0, 0.0
