"""Console output of a run: plain lines and, on a terminal, a live panel below them."""

import sys
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from imagenet_jax.formatting import format_duration
from imagenet_jax.logs.panel import Panel, speed_text
from imagenet_jax.logs.writers import Values, Writer
from imagenet_jax.training.metrics import METRICS, WEIGHTS_LABELS, Metric

_REFRESHES = 4  # a second


class ConsoleWriter(Writer):
    """Prints one line per point; if a panel shows the training points, only the other points."""

    def __init__(
        self,
        total_steps: int,
        batch_size: int,
        stream: TextIO | None = None,
        *,
        metrics: Sequence[Metric] = tuple(METRICS.values()),
        quiet: bool = False,
        silent: bool = False,
        console: Console | None = None,
    ):
        """
        Args:
          stream: to write to; None: standard output.
          metrics: to print, of those that are measured.
          quiet: print only warnings, errors and the final result.
          silent: print nothing: of several processes one speaks.
          console: in place of one for `stream`.
        """
        stream = stream or sys.stdout
        # Logs are searched with grep, so lines are never wrapped or colored, even with FORCE_COLOR.
        self._console = console or Console(
            file=stream,
            force_terminal=None if stream.isatty() else False,
            soft_wrap=True,
            highlight=False,
            markup=False,
            emoji=False,
            quiet=silent,
        )
        self._total, self._batch_size = total_steps, batch_size
        self._metrics, self._quiet, self._silent = metrics, quiet, silent
        self._last_evaluation: tuple[int | None, str] = (None, "")
        self._panel: Panel | None = None
        self._live: Live | None = None

    def start(self, panel: Panel) -> None:
        """Show `panel` below the lines if this is a terminal that can move its cursor."""
        if self._quiet or self._silent or not self._console.is_interactive:
            return
        self._panel = panel
        self._live = Live(
            get_renderable=self._renderable,
            console=self._console,
            refresh_per_second=_REFRESHES,
        )
        self._live.start()
        # Keep the cursor visible: a killed process could not restore it.
        self._console.show_cursor(True)

    def _renderable(self) -> RenderableType:
        return self._panel or Text("")

    def progress(self, step: int, rate: float | None = None) -> None:
        """Show that `step` was dispatched; `rate` is the current speed in images per second."""
        if self._panel:
            self._panel.progress(step, rate)

    def saved(self, step: int) -> None:
        if self._panel:
            self._panel.saved(step)

    def status(self, status: str) -> None:
        if self._panel:
            self._panel.status(status)

    def say(self, text: str) -> None:
        """Print a line, above the panel."""
        if not self._quiet:
            self._print(text)

    def warn(self, text: str) -> None:
        """Print a warning, also in a quiet run."""
        self._print(text)

    def end(self, text: str) -> None:
        """Print the last line, also in a quiet run, which also gets the last evaluation."""
        if self._panel:
            self._panel.end()
        if self._quiet and self._last_evaluation[1]:
            self._print(self._last_evaluation[1])
        self._print(text)

    def _print(self, text: str) -> None:
        # A Text is never interpreted as markup.
        self._console.print(Text(text), soft_wrap=True)

    def write(self, step: int, split: str, values: Values) -> None:
        if self._panel:
            self._panel.write(step, split, values)
        if split == "train":
            if self._panel is None:
                self.say(self._training_line(step, values))
            elif "skipped" in values:
                self.say(f"step {step:>7}{_skipped(values)}")
            return
        if split == "rewind":
            first, last = values["skipped_batches"]
            self.warn(
                f"not finite at step {values['nonfinite_step']}: back to step {step}, without "
                f"batches {first} to {last}"
            )
            return
        weights = f" ({WEIGHTS_LABELS[values['weights']]} weights)" if "weights" in values else ""
        measured = ", ".join(self._measured(values))
        line = (
            f"step {step:>7}  {split}{weights}: {values['count']} images, "
            f"{measured}{_skipped(values)}"
        )
        if self._last_evaluation[0] != step:  # the first one has the EMA weights
            self._last_evaluation = (step, line)
        self.say(line)

    def _training_line(self, step: int, v: Values) -> str:
        line = (
            f"step {step:>7}/{self._total}  epoch {v['epoch']:7.2f}  "
            f"{'  '.join(self._measured(v))}  lr {v['learning_rate']:.3g}{_skipped(v)}"
        )
        if "images_per_second" not in v:
            return line
        speed = speed_text(v)
        left = format_duration((self._total - step) * self._batch_size / v["images_per_second"])
        return f"{line}  {'  '.join(speed)}  ETA {left}"

    def _measured(self, values: Values) -> list[str]:
        return [
            f"{metric.label} {metric.text(values[metric.name]):>7}"
            for metric in self._metrics
            if metric.name in values
        ]

    def flush(self) -> None:
        self._console.file.flush()

    def close(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None


def _skipped(values: Values) -> str:
    return f"  {len(values['skipped'])} undecodable skipped" if "skipped" in values else ""
