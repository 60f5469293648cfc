"""How fast the loop goes, and how much of its time it waits for input."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

# Values of the train split that tell of the machine: two runs that are otherwise equal differ.
MEASURED = (
    "images_per_second", "input_wait", "flops_per_second", "peak_share", "device_memory",
    "process_memory", "seconds", "time",
)  # fmt: skip


class Throughput:
    """The speed of training, measured between steps that are known to be done.

    Dispatched steps say nothing: the first ones are dispatched at once, and some are always under
    way. The clock runs from one completed step to the next while the devices stay busy. Whatever
    empties them (the start, a compilation, an evaluation, a checkpoint) stops it, and it starts
    again when the first step after that is done.
    """

    def __init__(self, batch_size: int, peak: float | None = None):
        """`peak` is what all devices together could do in a second; None: not known."""
        self._batch_size, self._peak = batch_size, peak
        self._last: float | None = None  # when the last step was done; None: the clock stands
        self._waiting = 0.0  # for input, since the last step was done
        self._reset()

    def _reset(self) -> None:
        self._steps, self._elapsed, self._waited = 0, 0.0, 0.0
        self._flops: float | None = 0.0

    def done(self, flops: float | None = None) -> None:
        """Note that one more step, of `flops` operations, is done; None: not known."""
        now = time.perf_counter()
        if self._last is not None:
            self._steps += 1
            self._elapsed += now - self._last
            self._waited += self._waiting
            self._flops = None if flops is None or self._flops is None else self._flops + flops
        self._last, self._waiting = now, 0.0

    def stop_clock(self) -> None:
        """Leave out the time until the next step is done: the devices run empty."""
        self._last = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside is spent waiting for input."""
        before = time.perf_counter()
        yield
        self._waiting += time.perf_counter() - before

    def rate(self) -> float | None:
        """Return the images per second since the last lap; None before two steps are done."""
        return self._steps * self._batch_size / self._elapsed if self._elapsed else None

    def lap(self) -> dict[str, float]:
        """Return the speed since the last lap; {} if it is not known.

        Returns:
          images_per_second and input_wait (share of time); flops_per_second of all devices if the
          operations are known; peak_share of what the devices could do if that is known.
        """
        values = {}
        if rate := self.rate():
            values = {"images_per_second": rate, "input_wait": self._waited / self._elapsed}
            if self._flops:
                values["flops_per_second"] = self._flops / self._elapsed
                if self._peak:
                    values["peak_share"] = self._flops / self._elapsed / self._peak
        self._reset()
        return values
