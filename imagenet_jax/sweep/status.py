"""How far a sweep is: a table that moves on a terminal, lines elsewhere."""

import datetime
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

_LINE_SECONDS = 30.0  # between two lines of the same running cell, in a log
_ROWS = 20  # of the table: a terminal's screen; what has most to say comes first
_ORDER = ("running", "failed", "unfinished", "not started", "finished")
_ENDS = ("finished", "failed", "unfinished")
_STYLES = {"running": "cyan", "failed": "bold red", "finished": "green"}


@dataclass(frozen=True)
class Row:
    """One cell: `latest` metric as text, `seconds` to its end where they are known."""

    cell: str
    state: str
    step: int
    total: int
    latest: str
    seconds: float | None


class Status:
    """While entered, `show` tells what has changed.

    Args:
      jobs: cells that run at once.
    """

    def __init__(self, jobs: int, stream: TextIO | None = None):
        self._jobs = jobs
        self._console = Console(
            file=stream or sys.stdout, soft_wrap=True, highlight=False, markup=False, emoji=False
        )
        self._live: Live | None = None
        self._told: dict[str, tuple[str, int]] = {}
        self._when: dict[str, float] = {}
        self._began: dict[str, float] = {}
        self._took: list[float] = []

    def __enter__(self) -> "Status":
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, rows: Sequence[Row]) -> None:
        """The rows as they are now, in the order of the sweep."""
        ended = [row for row in rows if row.cell in self._began and row.state in _ENDS]
        for row in rows:
            self._time(row)
        if self._live:
            self._live.update(self._table(rows), refresh=True)
            return
        for row in rows:
            if self._is_news(row):
                self._console.print(self._line(row))
                self._told[row.cell] = (row.state, row.step)
                self._when[row.cell] = time.monotonic()
        if ended:
            self._console.print(self._summary(rows))
        self._console.file.flush()

    def _time(self, row: Row) -> None:
        """Keep how long the cells take that end while this runs."""
        now = time.monotonic()
        if row.state == "running":
            self._began.setdefault(row.cell, now)
        elif row.cell in self._began:
            took = now - self._began.pop(row.cell)
            if row.state == "finished":
                self._took.append(took)

    def _is_news(self, row: Row) -> bool:
        state, step = self._told.get(row.cell, ("not started", 0))
        if row.state != state:
            return True
        late = time.monotonic() - self._when.get(row.cell, 0.0) > _LINE_SECONDS
        return row.state == "running" and row.step != step and late

    def _line(self, row: Row) -> str:
        parts = [f"{row.state:<11} {row.cell}"]
        if row.total:
            parts.append(f"step {row.step}/{row.total}")
        if row.latest:
            parts.append(row.latest)
        if row.state == "running" and row.seconds is not None:
            parts.append(f"ETA {_duration(row.seconds)}")
        return "  ".join(parts)

    def _summary(self, rows: Sequence[Row]) -> str:
        counts = [f"{sum(r.state == s for r in rows)} {s}" for s in _ORDER if _has(rows, s)]
        left = self._seconds_left(rows)
        eta = f"; ETA {_duration(left)}" if left else ""
        return f"{len(rows)} cells: {', '.join(counts)}{eta}"

    def _seconds_left(self, rows: Sequence[Row]) -> float | None:
        """Of the whole sweep, from the cells that have ended; None before the first."""
        if not self._took:
            return None
        mean, now = sum(self._took) / len(self._took), time.monotonic()
        left = 0.0
        for row in rows:
            if row.state == "running":
                left += max(mean - (now - self._began[row.cell]), 0.0)
            elif row.state in ("not started", "unfinished"):
                left += mean
        return left / self._jobs

    def _table(self, rows: Sequence[Row]) -> Group:
        table = Table(box=None, pad_edge=False)
        for name in ("cell", "state", "step", "latest", "ETA"):
            right = name in ("step", "ETA")
            table.add_column(name, justify="right" if right else "left", no_wrap=True)
        first = sorted(rows, key=lambda row: _ORDER.index(row.state))[:_ROWS]
        for row in (row for row in rows if row in first):
            running = row.state == "running" and row.seconds is not None
            table.add_row(
                Text(row.cell),
                Text(row.state, style=_STYLES.get(row.state, "dim")),
                f"{row.step}/{row.total}" if row.total else "",
                Text(row.latest),
                _duration(row.seconds or 0.0) if running else "",
            )
        more = f"and {len(rows) - len(first)} more; " if len(rows) > len(first) else ""
        return Group(table, Text(f"{more}{self._summary(rows)}", style="bold"))


def _has(rows: Sequence[Row], state: str) -> bool:
    return any(row.state == state for row in rows)


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
