"""The live panel of a training run: progress, metrics, speed and remaining time."""

import math
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.panel import Panel as Frame
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from imagenet_jax.formatting import format_bytes, format_duration, format_flops
from imagenet_jax.logs.writers import Values
from imagenet_jax.training.metrics import METRICS, WEIGHTS_LABELS, Metric

_BLOCKS = "▁▂▃▄▅▆▇█"
_CURVE = 32  # characters of a curve, if there is room


class Panel:
    """Collects numbers and draws them on request. Both are cheap and never wait.

    Another thread may draw it: each field is replaced as a whole.
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
          step: the run continues after it, and it is its last checkpoint; 0: there is none.
          memory_limit: bytes of a device; None: not known.
          metrics: to show, of those that are measured.
        """
        self._metrics = metrics
        self._memory_limit = memory_limit
        self._title, self._total, self._batch_size = title, total_steps, batch_size
        self._step = step
        self._status = "compiling"
        self._train: dict[str, Any] = {}
        self._losses: deque[float] = deque(maxlen=_CURVE)
        self._evaluated: int | None = None
        self._eval = ""
        self._saved: tuple[int, float | None] | None = (step, None) if step else None
        self._began = time.monotonic()
        self._rate: float | None = None  # images per second, before the first logged interval
        self._ended: float | None = None

    def progress(self, step: int, rate: float | None = None) -> None:
        """Record that `step` was dispatched; `rate` is the current speed, if it is known."""
        self._step, self._status, self._rate = step, "training", rate or self._rate

    def status(self, status: str) -> None:
        """Record what the run is doing, such as evaluating."""
        self._status = status

    def saved(self, step: int) -> None:
        """Record that a checkpoint of `step` is being written."""
        self._saved = (step, time.monotonic())

    def write(self, step: int, split: str, values: Values) -> None:
        """Record one point, from this start or from the file of an earlier one."""
        if split == "train":
            # The last steps of a run are not a whole interval, so they have no speed.
            speed = {name: v for name, v in self._train.items() if name not in values}
            self._train = speed | dict(values)
            self._losses.append(float(values["loss"]))
        elif "count" in values and step != self._evaluated:  # the first one has the EMA weights
            text = f"step {step:,}: {'  '.join(self._measured(values))}"
            if "weights" in values:
                text += f"  {WEIGHTS_LABELS[values['weights']]} weights"
            self._evaluated, self._eval = step, text

    def end(self) -> None:
        """Stop the clocks."""
        self._ended = time.monotonic()
        self._status = "finished" if self._step == self._total else "stopped"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = Table.grid(padding=(0, 2, 0, 0), expand=True)
        rows.add_column(no_wrap=True, style="dim")
        rows.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        room = max(0, min(_CURVE, options.max_width - 52))
        for label, text in self._rows(room):
            rows.add_row(label, text)
        bar = ProgressBar(total=self._total, completed=self._step, complete_style="cyan")
        head = Table.grid(padding=(0, 2, 0, 0), expand=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        head.add_row(bar, f"{self._step:,}/{self._total:,}  {self._step / self._total:6.1%}")
        yield Frame(
            Group(head, rows),
            title=Text(self._title, style="bold", overflow="ellipsis"),
            title_align="left",
            subtitle=Text(self._status, style="dim"),
            subtitle_align="right",
            border_style="cyan" if self._ended is None else "green",
            width=min(options.max_width, 100),
        )

    def _rows(self, room: int) -> list[tuple[str, Text]]:
        v, now = self._train, self._ended or time.monotonic()
        rate = v.get("images_per_second", self._rate)
        clock = [format_duration(now - self._began) + " so far"]
        if rate and self._ended is None:
            left = (self._total - self._step) * self._batch_size / rate
            clock.append(format_duration(left) + " left")
        if "epoch" in v:
            clock.insert(0, f"epoch {v['epoch']:.2f}")
        rows = [("time", _joined(*clock))]
        if v:
            measured = _joined(*self._measured(v), f"learning rate {v['learning_rate']:.3g}")
            rows.append(("train", measured.append("  " + curve(self._losses, room), "cyan")))
        if rate:
            rows.append(("speed", _joined(*speed_text(v | {"images_per_second": rate}))))
        if "device_memory" in v:
            used = format_bytes(v["device_memory"])
            limit = f" of {format_bytes(self._memory_limit)}" if self._memory_limit else ""
            rows.append(("memory", Text(f"{used}{limit} a device, at most")))
        elif "process_memory" in v:
            used = format_bytes(v["process_memory"])
            rows.append(("memory", Text(f"{used} of the process, at most")))
        rows.append(("evaluated", Text(self._eval or "not yet")))
        rows.append(("saved", Text(self._saved_text(now))))
        return rows

    def _measured(self, values: Values) -> list[str]:
        return [f"{m.label} {m.text(values[m.name])}" for m in self._metrics if m.name in values]

    def _saved_text(self, now: float) -> str:
        if self._saved is None:
            return "not yet"
        step, when = self._saved
        return f"step {step:,}" + ("" if when is None else f", {format_duration(now - when)} ago")


def speed_text(v: Values) -> list[str]:
    """Return texts for images/s, FLOP/s, percentage of peak and input wait, as far as known."""
    parts = [f"{v['images_per_second']:,.0f} img/s"]
    if "flops_per_second" in v:
        share = f" ({v['peak_share']:.1%} of peak)" if "peak_share" in v else ""
        parts.append(f"{format_flops(v['flops_per_second'])}/s{share}")
    if "input_wait" in v:
        parts.append(f"input wait {v['input_wait']:.1%}")
    return parts


def curve(values: deque[float] | list[float], width: int) -> str:
    """Return the last `width` values as a curve of block characters."""
    shown = [v for v in list(values)[-width:] if math.isfinite(v)] if width else []
    if len(shown) < 2:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((v - low) * scale)] for v in shown)


def _joined(*parts: str) -> Text:
    return Text("  ".join(parts))
