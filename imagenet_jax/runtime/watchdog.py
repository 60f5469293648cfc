"""Exits of a process that hangs: the watchdog of a run, and a deadline for closing."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time

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
                    self._end(silence)
                # Code that never releases the GIL blocks this thread too. Then faulthandler's own
                # thread prints the stacks, and the system's timer ends the process.
                faulthandler.dump_traceback_later(self._seconds + 2 * period, file=2)
                signal.setitimer(signal.ITIMER_REAL, self._seconds + 3 * period)
        finally:
            faulthandler.cancel_dump_traceback_later()
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _end(self, silence: float) -> None:
        message = (
            f"error: no progress for {silence:.0f} s (config.log.watchdog_seconds); the stack of "
            "every thread follows. The same command continues from the last checkpoint\n"
        )
        with contextlib.suppress(OSError, ValueError):  # the terminal or disk may be gone too
            sys.stdout.flush()
        with contextlib.suppress(OSError):
            os.write(2, message.encode())
        faulthandler.dump_traceback(file=2, all_threads=True)
        os._exit(EXIT_CODE)
