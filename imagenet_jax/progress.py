"""Progress of long work: a bar with the time left on a terminal, or lines in a log."""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Literal, Self, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from imagenet_jax.formatting import format_bytes, format_duration

_T = TypeVar("_T")

_FIRST_LINE, _LAST_INTERVAL = 3.0, 30.0  # seconds between lines in a log
_SLOW_SECONDS = 2.0  # time after which `announce` names the work


class ProgressReporter:
    """A context manager that shows the progress of one stage of work.

    Args:
      stage: name of the stage.
      total: amount of work.
      already: amount done by an earlier run, which is ignored when estimating the time left.
      unit: what `total` counts.
      quiet: show nothing.
      stderr: write to standard error, without a line for work of less than three seconds.
    """

    def __init__(
        self,
        stage: str,
        total: int,
        *,
        already: int = 0,
        unit: Literal["bytes", "items"] = "items",
        quiet: bool = False,
        stderr: bool = False,
    ):
        self._stage, self._total, self._unit = stage, total, unit
        self._already = self._done = already
        self._start = time.monotonic()
        self._next_line = _FIRST_LINE
        self._always_ends = not stderr
        self._console = Console(highlight=False, soft_wrap=True, quiet=quiet, stderr=stderr)
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn(stage), BarColumn(),
                DownloadColumn(binary_units=True) if unit == "bytes" else MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._console, transient=stderr, redirect_stdout=not stderr,
            )  # fmt: skip
            self._task = self._bar.add_task(stage, total=total, completed=already)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, amount: int) -> None:
        """Count `amount` more of the work as done."""
        self._done += amount
        seconds = time.monotonic() - self._start
        if self._bar:
            self._bar.update(self._task, completed=self._done)
        elif seconds >= self._next_line or (self._done == self._total and self._always_ends):
            self._always_ends = True
            self._next_line = seconds + _interval(seconds)
            self._console.print(self._line(seconds))

    def _line(self, seconds: float) -> str:
        show = format_bytes if self._unit == "bytes" else "{:,}".format
        amount = f"{show(self._done)} of {show(self._total)}"
        line = f"{self._stage}: {amount} in {format_duration(seconds)}"
        if self._done == self._total:
            return line
        left = (self._total - self._done) * seconds / max(1, self._done - self._already)
        return f"{line}, {format_duration(left)} left"


@contextlib.contextmanager
def announce(work: str, *, quiet: bool = False, stderr: bool = True) -> Iterator[None]:
    """Name `work` on standard error (or output) if the block takes more than two seconds.

    A terminal shows a spinner until the block ends; a log gets lines with the time so far.
    """
    console = Console(highlight=False, soft_wrap=True, quiet=quiet, stderr=stderr)
    ended = threading.Event()

    def show() -> None:
        start = time.monotonic()
        if ended.wait(_SLOW_SECONDS):
            return
        if console.is_terminal:
            with console.status(f"{work} ..."):
                ended.wait()
            return
        console.print(f"{work} ...")
        while not ended.wait(_interval(time.monotonic() - start)):
            console.print(f"{work}: {format_duration(time.monotonic() - start)} so far")

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()  # it may be printing


def _interval(seconds: float) -> float:
    """Return the seconds to the next line in a log, after `seconds` of work."""
    return min(_LAST_INTERVAL, max(_FIRST_LINE, seconds / 4))


def track(
    items: Iterable[_T],
    stage: str,
    total: int,
    *,
    size: int = 1,
    already: int = 0,
    quiet: bool = False,
) -> Iterator[_T]:
    """Yield `items` and show progress on standard error.

    Args:
      total: amount of work, of which each item is `size` and `already` is done.
    """
    with ProgressReporter(stage, total, already=already, quiet=quiet, stderr=True) as progress:
        done = already
        for item in items:
            yield item
            progress.advance(min(size, total - done))
            done += size
