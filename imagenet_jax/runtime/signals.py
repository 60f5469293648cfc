"""SIGTERM and SIGINT: finish the step, save and exit; a second one exits at once."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType, TracebackType

import jax

from imagenet_jax.runtime.watchdog import exit_soon

# Whoever stops a whole job signals its processes, and those that started them pass the signal on.
_SAME_STOP_SECONDS = 2.0


class StopRequested(BaseException):
    """Training stops now, because of signal `number`. No Exception, so that nothing handles it."""

    def __init__(self, number: int):
        super().__init__(f"signal {number}")
        self.number = number


class StopSignal:
    """While entered, remembers the first stop signal instead of dying of it.

    A second one ends the process at once, unless it arrives together with the first.

    Attributes:
      received: the signal's number, or None. The exit code to use is 128 + it.
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
            self._held = None
            deadline.cancel()
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raise StopRequested inside as soon as the signal arrives, or if it already has.

        Does nothing if there are several processes: they must agree on the step to stop at.
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
        """Keep what `error` has interrupted until everything else is closed, on exit.

        It holds the input, and closing that waits for the threads that read it. Where these stall,
        the process exits soon after.
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
