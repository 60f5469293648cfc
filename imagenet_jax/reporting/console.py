"""What a run says on the console: a line per point, and on a terminal a bar below the lines."""

import datetime
import sys
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from imagenet_jax.reporting.writers import Values, Writer


class ConsoleWriter(Writer):
    """A line per point; on a terminal also a progress bar below the lines."""

    def __init__(
        self,
        total_steps: int,
        batch_size: int,
        stream: TextIO | None = None,
        *,
        quiet: bool = False,
    ):
        """`quiet` prints nothing: of several processes one speaks."""
        stream = stream or sys.stdout
        # Lines of a log are for grep: never wrapped, never coloured.
        self._console = Console(
            file=stream,
            soft_wrap=True,
            highlight=False,
            markup=False,
            emoji=False,
            quiet=quiet,
        )
        self._total, self._batch_size = total_steps, batch_size
        self._bar: Progress | None = None
        if self._console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task("training", total=total_steps)
            self._bar.start()

    def progress(self, step: int) -> None:
        """Move the bar; nothing where there is none."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        self._console.print(text)

    def write(self, step: int, split: str, values: Values) -> None:
        if split == "train":
            self.say(self._training_line(step, values))
            return
        if split == "rewind":
            first, last = values["skipped_batches"]
            self.say(
                f"not finite at step {values['nonfinite_step']}: back to step {step}, without "
                f"batches {first} to {last}"
            )
            return
        weights = f" ({values['weights']} weights)" if "weights" in values else ""
        self.say(
            f"step {step:>7}  {split}{weights}: {values['count']} images, "
            f"top-1 {_percent(values['top1'])}, top-5 {_percent(values['top5'])}, "
            f"loss {values['loss']:.4f}{_skipped(values)}"
        )

    def _training_line(self, step: int, v: Values) -> str:
        line = (
            f"step {step:>7}/{self._total}  epoch {v['epoch']:7.2f}  loss {v['loss']:7.4f}  "
            f"top-1 {_percent(v['top1'])}  lr {v['learning_rate']:.3g}{_skipped(v)}"
        )
        if "images_per_second" not in v:
            return line
        rate = float(v["images_per_second"])
        seconds = (self._total - step) * self._batch_size / rate
        eta = datetime.timedelta(seconds=round(seconds))
        return f"{line}  {rate:,.0f} img/s  input wait {_percent(v['input_wait'])}  ETA {eta}"

    def flush(self) -> None:
        self._console.file.flush()

    def close(self) -> None:
        if self._bar:
            self._bar.stop()


def _percent(share: float) -> str:
    return f"{100 * share:5.1f} %"


def _skipped(values: Values) -> str:
    return f"  {len(values['skipped'])} undecodable skipped" if "skipped" in values else ""
