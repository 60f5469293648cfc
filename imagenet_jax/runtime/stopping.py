"""Ends of a process: stop signals, the watchdog of a run, and a deadline for closing."""

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
# As if SIGALRM had ended the process. The launchers restart codes above 128 (docs/launch.md).
EXIT_CODE = 128 + signal.SIGALRM


def exit_soon(code: int, seconds: float = 10.0) -> threading.Timer:
    """Exit with `code` in `seconds`, unless the process ends before; return the timer.

    Python waits for its threads at exit, and a thread may wait forever for lost storage.
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
    """While entered, records the first SIGTERM or SIGINT; a second one exits at once.

    A signal within 2 seconds of the first is the same stop.

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

        Does nothing in a run of several processes: they must agree on the step to stop at.
        """
        import jax  # which commands that only use `exit_soon` do not need

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
    """While entered, ends the process if `beat` is not called for `seconds`. 0: never.

    A stalled input, or a collective that waits for a dead process, would hold the devices forever.
    The stack of every thread is printed to stderr.
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
                # Code that never releases the GIL blocks this thread too. Then faulthandler's own
                # thread prints the stacks, and the system's timer ends the process.
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
