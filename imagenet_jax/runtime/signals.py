"""Stop signals, SIGTERM and SIGINT: the first one ends training, a second one the process."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType, TracebackType

import jax

from imagenet_jax.runtime.watchdog import exit_soon

# A scheduler signals all processes of a job, and their parents may forward the same signal.
_SAME_STOP_SECONDS = 2.0


class StopRequested(BaseException):
    """Signal `number` stops training. Not an Exception: `except Exception` must not catch it."""

    def __init__(self, number: int):
        super().__init__(f"signal {number}")
        self.number = number


class StopSignal:
    """While entered, records the first stop signal; a second one exits at once.

    A signal within 2 seconds of the first is the same stop.

    Attributes:
      received: the number of the signal, or None. The exit code is 128 + this number.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._when, self._interrupts = 0.0, False
        self._held: StopRequested | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._held:
            deadline = exit_soon(128 + self._held.number)
            self._held = None  # closes the input
            deadline.cancel()
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raise StopRequested in this block when the signal arrives, or if it already has.

        Does nothing in a run of several processes: they must agree on the step to stop at.
        """
        if jax.process_count() > 1:
            yield
            return
        self._interrupts = True
        try:
            if self.received is not None:
                raise StopRequested(self.received)
            yield
        finally:
            self._interrupts = False

    def saved(self, error: StopRequested) -> None:
        """Keep the traceback of `error`, which refers to the input, until this object exits.

        Closing the input waits for its threads. If they hang, the process exits after 10 seconds.
        """
        self._held = error

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if time.monotonic() - self._when > _SAME_STOP_SECONDS:
                os._exit(128 + number)
            return
        self.received, self._when = number, time.monotonic()
        if self._interrupts:
            raise StopRequested(number)
