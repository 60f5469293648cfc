"""A run that no longer moves: say where every thread stands, and end, to be started again."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time

# As a shell tells of a process that SIGALRM ended. Above 128: start it again (launch/README.md).
EXIT_CODE = 128 + signal.SIGALRM


def exit_soon(code: int, seconds: float = 10.0) -> threading.Timer:
    """Exit with `code` after `seconds` unless the process has ended by itself before.

    Python waits for its threads at the end, and a thread may wait forever for storage that is gone.
    Returns the timer, to cancel it.
    """
    timer = threading.Timer(seconds, os._exit, [code])
    timer.daemon = True
    timer.start()
    return timer


class Watchdog:
    """While entered, ends the process where `beat` is not called for `seconds`.

    An input that stalled or a collective that waits for a dead peer would otherwise hold the
    devices for ever. The stacks go to stderr. 0 seconds: never.
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
        """The run moves."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        period = min(self._seconds / 10, 10.0)
        try:
            while not self._ended.wait(period):
                silence = time.monotonic() - self._last
                if silence > self._seconds:
                    self._end(silence)
                # Code that never gives back Python's lock stops this thread too. Then a thread
                # without Python shows the stacks, and the system's alarm clock ends the process.
                faulthandler.dump_traceback_later(self._seconds + 2 * period, file=2)
                signal.setitimer(signal.ITIMER_REAL, self._seconds + 3 * period)
        finally:
            faulthandler.cancel_dump_traceback_later()
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _end(self, silence: float) -> None:
        message = (
            f"error: nothing moved for {silence:.0f} s (config.log.watchdog_seconds); what every "
            "thread does follows. The same command continues from the last checkpoint\n"
        )
        with contextlib.suppress(OSError, ValueError):  # where it goes may be gone too
            sys.stdout.flush()
        with contextlib.suppress(OSError):
            os.write(2, message.encode())
        faulthandler.dump_traceback(file=2, all_threads=True)
        os._exit(EXIT_CODE)
