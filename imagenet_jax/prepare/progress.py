"""How far the work is: a bar with the time left on a terminal, a line now and then elsewhere."""

import time
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

_LINE_SECONDS = 30


class Reporter:
    """A context manager that shows one stage of work.

    Args:
      what: the stage.
      total: bytes, or archives or images where `in_bytes` is false.
      already: done by an earlier run; no basis for the time left.
      quiet: show nothing.
    """

    def __init__(
        self,
        what: str,
        total: int,
        *,
        already: int = 0,
        in_bytes: bool = True,
        quiet: bool = False,
    ):
        self._what, self._total, self._in_bytes = what, total, in_bytes
        self._already = self._done = already
        self._start = self._last = time.monotonic()
        self._console = Console(highlight=False, soft_wrap=True, quiet=quiet)
        self._bar: Progress | None = None
        if self._console.is_terminal:
            amount: ProgressColumn = DownloadColumn() if in_bytes else MofNCompleteColumn()
            self._bar = Progress(
                TextColumn(what), BarColumn(), amount, TimeRemainingColumn(), console=self._console
            )
            self._task = self._bar.add_task(what, total=total, completed=already)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, amount: int) -> None:
        """`amount` more is done."""
        self._done += amount
        if self._bar:
            self._bar.update(self._task, completed=self._done)
        elif time.monotonic() - self._last > _LINE_SECONDS or self._done == self._total:
            self._last = time.monotonic()
            self._console.print(self._line())

    def _line(self) -> str:
        if self._in_bytes:
            amount = f"{self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB"
        else:
            amount = f"{self._done:,} of {self._total:,}"
        seconds = time.monotonic() - self._start
        left = (self._total - self._done) * seconds / max(1, self._done - self._already)
        time_left = f", {left / 60:.0f} min left" if self._done < self._total else ""
        return f"{self._what}: {amount} in {seconds / 60:.1f} min{time_left}"
