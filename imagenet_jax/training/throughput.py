"""How fast the loop goes, and how much of its time it waits for input."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

# Values of the train split that tell of the machine: two runs that are otherwise equal differ.
MEASURED = (
    "images_per_second", "input_wait", "flops_per_second", "peak_share", "device_memory",
    "process_memory",
)  # fmt: skip


class Throughput:
    """Wall time per interval of steps; evaluation and compilation are left out."""

    def __init__(self, batch_size: int, peak: float | None = None):
        """`peak` is what all devices together could do in a second; None: not known."""
        self._batch_size, self._peak = batch_size, peak
        self._started: float | None = None
        self._steps, self._waited, self._paused = 0, 0.0, 0.0
        self._flops: float | None = 0.0

    def step(self, flops: float | None = None) -> None:
        """A step of `flops` operations was dispatched; None: not known.

        The clock starts after the first, which compiles.
        """
        if self._started is None:
            self._restart()
            return
        self._steps += 1
        self._flops = None if flops is None or self._flops is None else self._flops + flops

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
        """What was reached since the last lap; {} before both.

        Returns:
          images_per_second and input_wait (share of time); flops_per_second of all devices, where
          the operations are known; peak_share of what the devices could do, where that is.
        """
        values = {}
        if self._started is not None and self._steps:
            elapsed = time.perf_counter() - self._started - self._paused
            values = {
                "images_per_second": self._steps * self._batch_size / elapsed,
                "input_wait": self._waited / elapsed,
            }
            if self._flops:
                values["flops_per_second"] = self._flops / elapsed
                if self._peak:
                    values["peak_share"] = self._flops / elapsed / self._peak
        self._restart()
        return values

    def _restart(self) -> None:
        self._started = time.perf_counter()
        self._steps, self._waited, self._paused, self._flops = 0, 0.0, 0.0, 0.0
