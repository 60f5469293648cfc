"""Progress of a running sweep: a live table on a terminal, or lines in a log."""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from imagenet_jax.formatting import format_duration
from imagenet_jax.sweep.folder import FAILED, FINISHED, NOT_STARTED, RUNNING, UNFINISHED, State
from imagenet_jax.sweep.plan import Trial
from imagenet_jax.training.metrics import METRICS

_LINE_SECONDS = 30.0  # between two lines about the same running trial in a log
_ROWS = 20  # of the live table, which must fit a terminal; in the order of the states below
_ORDER = (RUNNING, FAILED, UNFINISHED, NOT_STARTED, FINISHED)
_STYLES = {RUNNING: "cyan", FAILED: "bold red", FINISHED: "green"}


@dataclass(frozen=True)
class Row:
    """One trial. `latest` are its latest metrics as text, `seconds` the time left, if known."""

    trial: str
    state: str
    step: int
    total: int
    latest: str
    seconds: float | None

    @property
    def eta(self) -> str:
        running = self.state == RUNNING and self.seconds is not None
        return format_duration(self.seconds or 0.0) if running else ""


def make_row(trial: Trial, state: State, has_process: bool) -> Row:
    """Return the row of a trial. A trial whose process is still starting counts as running."""
    train = [line for line in state.history if line.get("split") == "train"]
    evaluated = [line for line in state.history if "weights" in line]
    rates = [line["images_per_second"] for line in train if "images_per_second" in line]
    seconds = None
    if rates and state.total:
        seconds = (state.total - state.step) * trial.config.batch_size / rates[-1]
    latest = []
    if train and not state.result:
        latest.append(f"{METRICS['loss'].label} {METRICS['loss'].text(train[-1]['loss'])}")
    if state.result or evaluated:
        top1 = (state.result or evaluated[-1])["top1"]
        latest.append(f"validation {METRICS['top1'].label} {METRICS['top1'].text(top1)}")
    kind = RUNNING if has_process else state.kind
    text = ", ".join(latest) or state.reason
    return Row(trial.name, kind, state.step, state.total, text, seconds)


class Progress:
    """A context manager whose `show` prints what has changed.

    Args:
      jobs: trials that run at the same time.
    """

    def __init__(self, jobs: int, stream: TextIO | None = None):
        self._jobs = jobs
        self._console = Console(
            file=stream or sys.stdout, soft_wrap=True, highlight=False, markup=False, emoji=False
        )
        self._live: Live | None = None
        self._printed: dict[str, tuple[str, int, float]] = {}  # state, step, time of the last line
        self._started: dict[str, float] = {}
        self._durations: list[float] = []  # of finished trials

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, rows: Sequence[Row]) -> None:
        """Show the current rows, in the order of the sweep."""
        ended = [self._measure(row) for row in rows]
        if self._live:
            self._live.update(self._table(rows), refresh=True)
            return
        for row in rows:
            if self._is_news(row):
                self._console.print(_format_line(row))
                self._printed[row.trial] = (row.state, row.step, time.monotonic())
        if any(ended):
            self._console.print(self._summary(rows))
        self._console.file.flush()

    def _measure(self, row: Row) -> bool:
        """Measure the duration of a trial. Return whether it has ended since the last call."""
        if row.state == RUNNING:
            self._started.setdefault(row.trial, time.monotonic())
            return False
        started = self._started.pop(row.trial, None)
        if started is not None and row.state == FINISHED:
            self._durations.append(time.monotonic() - started)
        return started is not None and row.state != NOT_STARTED

    def _is_news(self, row: Row) -> bool:
        state, step, when = self._printed.get(row.trial, (NOT_STARTED, 0, 0.0))
        late = time.monotonic() - when > _LINE_SECONDS
        return row.state != state or (row.state == RUNNING and row.step != step and late)

    def _summary(self, rows: Sequence[Row]) -> str:
        states = Counter(row.state for row in rows)
        counts = ", ".join(f"{states[state]} {state}" for state in _ORDER if states[state])
        left = self._seconds_left(rows)
        return f"{len(rows)} trials: {counts}" + (f"; ETA {format_duration(left)}" if left else "")

    def _seconds_left(self, rows: Sequence[Row]) -> float:
        """Return the seconds until the sweep ends, or 0 before the first trial has finished."""
        if not self._durations:
            return 0.0
        mean, now, left = sum(self._durations) / len(self._durations), time.monotonic(), 0.0
        for row in rows:
            if row.state == RUNNING:
                left += max(mean - (now - self._started[row.trial]), 0.0)
            elif row.state in (NOT_STARTED, UNFINISHED):
                left += mean
        return left / self._jobs

    def _table(self, rows: Sequence[Row]) -> Group:
        table = Table(box=None, pad_edge=False)
        for name in ("trial", "state", "step", "latest", "ETA"):
            justify = "right" if name in ("step", "ETA") else "left"
            table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        shown = sorted(rows, key=lambda row: _ORDER.index(row.state))[:_ROWS]
        for row in (row for row in rows if row in shown):
            state = Text(row.state, style=_STYLES.get(row.state, "dim"))
            step = f"{row.step}/{row.total}" if row.total else ""
            table.add_row(Text(row.trial), state, step, Text(row.latest), row.eta)
        more = f"and {len(rows) - len(shown)} more; " if len(rows) > len(shown) else ""
        return Group(table, Text(f"{more}{self._summary(rows)}", style="bold"))


def _format_line(row: Row) -> str:
    step = f"step {row.step}/{row.total}" if row.total else ""
    eta = f"ETA {row.eta}" if row.eta else ""
    return "  ".join(filter(None, (f"{row.state:<11} {row.trial}", step, row.latest, eta)))
