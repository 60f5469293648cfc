"""Ending a process: stop signals, a watchdog for stalled runs, and a deadline for exiting."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

# A scheduler signals all processes of a job, and their parents may forward the same signal.
_SAME_STOP_SECONDS = 2.0
# The exit code of a process that SIGALRM ends. Launchers restart runs with codes above 128
# (docs/launch.md).
EXIT_CODE = 128 + signal.SIGALRM


def exit_soon(code: int, seconds: float = 10.0) -> threading.Timer:
    """Exit with `code` after `seconds`, unless the process ends earlier. Return the timer.

    Python waits for its threads when it exits, and a thread may wait forever for lost storage.
    """
    timer = threading.Timer(seconds, os._exit, [code])
    timer.daemon = True
    timer.start()
    return timer


class StopRequested(BaseException):
    """Signal `number` stops training. Not an Exception: `except Exception` must not catch it."""

    def __init__(self, number: int):
        super().__init__(f"signal {number}")
        self.number = number


class StopSignal:
    """A context manager that records the first SIGTERM or SIGINT. A second one exits at once.

    Signals within 2 seconds of the first are ignored.

    Attributes:
      received: the number of the signal, or None. The exit code is 128 + this number.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._when, self._interrupts = 0.0, False
        self._held: StopRequested | None = None

    def __enter__(self) -> "StopSignal":
        self._previous = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: object) -> None:
        if self._held:
            deadline = exit_soon(128 + self._held.number)
            self._held = None  # closes the input
            deadline.cancel()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raise StopRequested in this block when the signal arrives, or if it already has.

        Does nothing in a run with several processes, which must agree on the step to stop at.
        """
        import jax  # not needed by commands that only use `exit_soon`

        self._interrupts = jax.process_count() == 1
        try:
            if self._interrupts and self.received is not None:
                raise StopRequested(self.received)
            yield
        finally:
            self._interrupts = False

    def saved(self, error: StopRequested) -> None:
        """Keep the traceback of `error`, which refers to the input, until this object exits.

        Closing the input waits for its threads. If they hang, the process exits after 10 seconds.
        """
        self._held = error

    def _handle(self, number: int, frame: object) -> None:
        if self.received is not None:
            if time.monotonic() - self._when > _SAME_STOP_SECONDS:
                os._exit(128 + number)
            return
        self.received, self._when = number, time.monotonic()
        if self._interrupts:
            raise StopRequested(number)


class Watchdog:
    """A context manager that ends the process if `beat` is not called for `seconds`; 0: never.

    Otherwise, a stalled input, or a collective that waits for a dead process, would occupy the
    devices forever. The stack of every thread is printed to stderr.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._last = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.beat()
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._seconds:
            self._ended.set()
            self._thread.join()

    def beat(self) -> None:
        """Record that the run makes progress."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        period = min(self._seconds / 10, 10.0)
        try:
            while not self._ended.wait(period):
                silence = time.monotonic() - self._last
                if silence > self._seconds:
                    _end_silent_process(silence)
                # Code that never releases the GIL also blocks this thread. In that case,
                # faulthandler's own thread prints the stacks, and a system timer ends the process.
                faulthandler.dump_traceback_later(self._seconds + 2 * period, file=2)
                signal.setitimer(signal.ITIMER_REAL, self._seconds + 3 * period)
        finally:
            faulthandler.cancel_dump_traceback_later()
            signal.setitimer(signal.ITIMER_REAL, 0)


def _end_silent_process(seconds: float) -> None:
    message = (
        f"error: no progress for {seconds:.0f} s (config.log.watchdog_seconds); the stack of "
        "every thread follows. The same command continues from the last checkpoint\n"
    )
    with contextlib.suppress(OSError, ValueError):  # the terminal or disk may be gone too
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(2, message.encode())
    faulthandler.dump_traceback(file=2, all_threads=True)
    os._exit(EXIT_CODE)
