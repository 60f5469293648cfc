"""Console output of a run: plain lines and, on a terminal, a live panel below them.

The panel shows progress, metrics, speed and remaining time.
"""

import math
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.panel import Panel as Frame
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from imagenet_jax.formatting import format_bytes, format_duration, format_flops
from imagenet_jax.logs.writers import Values, Writer
from imagenet_jax.training.metrics import METRICS, WEIGHTS_LABELS, Metric

_BLOCKS = "▁▂▃▄▅▆▇█"
_CURVE = 32  # width of a curve in characters, if there is room
_REFRESHES = 4  # per second


class Panel:
    """A panel that collects numbers and draws them on request. Both are cheap and never block.

    Another thread may draw it, because each field is replaced as a whole.
    """

    def __init__(
        self,
        title: str,
        total_steps: int,
        batch_size: int,
        step: int = 0,
        memory_limit: int | None = None,
        metrics: Sequence[Metric] = tuple(METRICS.values()),
    ):
        """
        Args:
          step: step of the checkpoint that the run continues from; 0: none.
          memory_limit: memory of a device in bytes; None: unknown.
          metrics: metrics to show, if they are measured.
        """
        self.title, self.total_steps, self.batch_size = title, total_steps, batch_size
        self.metrics, self._memory_limit = metrics, memory_limit
        self.status = "compiling"  # what the run is doing
        self._step = step
        self._train: dict[str, Any] = {}
        self._losses: deque[float] = deque(maxlen=_CURVE)
        self._evaluated: int | None = None
        self._evaluation, self._saved = "not yet", f"step {step:,}" if step else "not yet"
        self._saved_at: float | None = None
        self._began = time.monotonic()
        self._rate: float | None = None  # images per second, before the first logged interval
        self._ended: float | None = None

    def progress(self, step: int, rate: float | None = None) -> None:
        """Record that `step` was dispatched. `rate` is the current speed in images/s, if known."""
        self._step, self.status, self._rate = step, "training", rate or self._rate

    def saved(self, step: int) -> None:
        """Record that a checkpoint of `step` is being written."""
        self._saved, self._saved_at = f"step {step:,}", time.monotonic()

    def write(self, step: int, split: str, values: Values) -> None:
        """Record one point, from this start or from the file of an earlier start."""
        if split == "train":
            # The last steps of a run may not fill an interval, and then have no speed.
            self._train = self._train | dict(values)
            self._losses.append(float(values["loss"]))
        elif "count" in values and step != self._evaluated:  # the first one has the EMA weights
            measured = [f"step {step:,}: {'  '.join(self._measure(values))}"]
            if "weights" in values:
                measured.append(f"{WEIGHTS_LABELS[values['weights']]} weights")
            self._evaluated, self._evaluation = step, "  ".join(measured)

    def end(self) -> None:
        """Stop the clocks."""
        self._ended = time.monotonic()
        self.status = "finished" if self._step == self.total_steps else "stopped"

    def estimate_time_left(self, step: int, rate: float) -> str:
        """Return the time that the steps after `step` take at `rate` images per second."""
        return format_duration((self.total_steps - step) * self.batch_size / rate)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = Table.grid(padding=(0, 2, 0, 0), expand=True)
        rows.add_column(no_wrap=True, style="dim")
        rows.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for label, text in self._list_rows(max(0, min(_CURVE, options.max_width - 52))):
            rows.add_row(label, text)
        head = Table.grid(padding=(0, 2, 0, 0), expand=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        step, total = self._step, self.total_steps
        bar = ProgressBar(total=total, completed=step, complete_style="cyan")
        head.add_row(bar, f"{step:,}/{total:,}  {step / total:6.1%}")
        yield Frame(
            Group(head, rows),
            title=Text(self.title, style="bold", overflow="ellipsis"),
            title_align="left",
            subtitle=Text(self.status, style="dim"),
            subtitle_align="right",
            border_style="cyan" if self._ended is None else "green",
            width=min(options.max_width, 100),
        )

    def _list_rows(self, room: int) -> list[tuple[str, Text]]:
        """Return (label, text); the curve of the loss has `room` characters."""
        v, now = self._train, self._ended or time.monotonic()
        rate = v.get("images_per_second", self._rate)
        clock = [f"epoch {v['epoch']:.2f}"] if "epoch" in v else []
        clock.append(f"{format_duration(now - self._began)} so far")
        if rate and self._ended is None:
            clock.append(f"{self.estimate_time_left(self._step, rate)} left")
        rows = {"time": Text("  ".join(clock))}
        if v:
            measured = [*self._measure(v), f"learning rate {v['learning_rate']:.3g}", ""]
            rows["train"] = Text("  ".join(measured)).append(draw_curve(self._losses, room), "cyan")
        if rate:
            rows["speed"] = Text("  ".join(_describe_speed(v | {"images_per_second": rate})))
        if "device_memory" in v:
            limit = f" of {format_bytes(self._memory_limit)}" if self._memory_limit else ""
            rows["memory"] = Text(f"{format_bytes(v['device_memory'])}{limit} per device, at peak")
        elif "process_memory" in v:
            rows["memory"] = Text(f"{format_bytes(v['process_memory'])} of the process, at peak")
        age = f", {format_duration(now - self._saved_at)} ago" if self._saved_at else ""
        rows |= {"evaluated": Text(self._evaluation), "saved": Text(f"{self._saved}{age}")}
        return list(rows.items())

    def _measure(self, values: Values) -> list[str]:
        return [f"{m.label} {m.text(values[m.name])}" for m in self.metrics if m.name in values]


class ConsoleWriter(Writer):
    """Prints a line for each point, except for training points while `panel` is shown."""

    def __init__(
        self,
        panel: Panel,
        stream: TextIO | None = None,
        *,
        quiet: bool = False,
        silent: bool = False,
        console: Console | None = None,
    ):
        """
        Args:
          stream: where to write; None: standard output.
          quiet: print only warnings, errors and the final result.
          silent: print nothing; of several processes, only one prints.
          console: replaces the console for `stream`.
        """
        stream = stream or sys.stdout
        # Logs are searched with grep, so lines are never wrapped or colored, even with FORCE_COLOR.
        self._console = console or Console(
            file=stream, force_terminal=None if stream.isatty() else False, soft_wrap=True,
            highlight=False, markup=False, emoji=False, quiet=silent,
        )  # fmt: skip
        self._panel, self._quiet, self._silent = panel, quiet, silent
        self._last_evaluation: tuple[int | None, str] = (None, "")
        self._live: Live | None = None

    def start(self) -> None:
        """Show the panel below the lines if this is a terminal that can move its cursor."""
        if self._quiet or self._silent or not self._console.is_interactive:
            return
        self._live = Live(self._panel, console=self._console, refresh_per_second=_REFRESHES)
        self._live.start()
        # Keep the cursor visible, because a killed process could not restore it.
        self._console.show_cursor(True)

    @property
    def prints_lines(self) -> bool:
        """Whether a line is printed for each point, because there is no panel."""
        return not (self._quiet or self._silent or self._live)

    def say(self, text: str) -> None:
        """Print a line, above the panel."""
        if not self._quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """Print a line, even in a quiet run."""
        # A Text is never interpreted as markup.
        self._console.print(Text(text), soft_wrap=True)

    def end(self, text: str) -> None:
        """Print the last line, and in a quiet run the last evaluation before it."""
        self._panel.end()
        if self._quiet and self._last_evaluation[1]:
            self.warn(self._last_evaluation[1])
        self.warn(text)

    def write(self, step: int, split: str, values: Values) -> None:
        self._panel.write(step, split, values)
        names = values.get("skipped")
        skipped = f"  {len(names)} undecodable skipped" if names is not None else ""
        measured = [
            f"{metric.label} {metric.text(values[metric.name]):>7}"
            for metric in self._panel.metrics
            if metric.name in values
        ]
        if split == "train":
            if self._live is None:
                self.say(self._format_training(step, values, "  ".join(measured), skipped))
            elif skipped:
                self.say(f"step {step:>7}{skipped}")
        elif split == "rewind":
            first, last = values["skipped_batches"]
            self.warn(
                f"not finite at step {values['nonfinite_step']}: rewinding to step {step} and "
                f"skipping batches {first} to {last}"
            )
        else:
            kind = f" ({WEIGHTS_LABELS[values['weights']]} weights)" if "weights" in values else ""
            results = ", ".join((f"{values['count']} images", *measured))
            line = f"step {step:>7}  {split}{kind}: {results}{skipped}"
            if self._last_evaluation[0] != step:  # the first one has the EMA weights
                self._last_evaluation = (step, line)
            self.say(line)

    def _format_training(self, step: int, v: Values, measured: str, skipped: str) -> str:
        parts = [
            f"step {step:>7}/{self._panel.total_steps}",
            f"epoch {v['epoch']:7.2f}",
            measured,
            f"lr {v['learning_rate']:.3g}{skipped}",
        ]
        if rate := v.get("images_per_second"):
            parts += _describe_speed(v)
            if step < self._panel.total_steps:
                parts.append(f"ETA {self._panel.estimate_time_left(step, rate)}")
        return "  ".join(parts)

    def flush(self) -> None:
        self._console.file.flush()

    def close(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None


def _describe_speed(v: Values) -> list[str]:
    """Return texts for images/s, FLOP/s, percentage of peak and input wait, if they are known."""
    parts = [f"{v['images_per_second']:,.0f} img/s"]
    if "flops_per_second" in v:
        share = f" ({v['peak_share']:.1%} of peak)" if "peak_share" in v else ""
        parts.append(f"{format_flops(v['flops_per_second'])}/s{share}")
    if "input_wait" in v:
        parts.append(f"input wait {v['input_wait']:.1%}")
    return parts


def draw_curve(values: Sequence[float], width: int) -> str:
    """Return the last `width` values as a curve of block characters."""
    shown = [v for v in list(values)[-width:] if math.isfinite(v)] if width else []
    if len(shown) < 2:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((v - low) * scale)] for v in shown)
