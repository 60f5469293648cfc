"""Where numbers go: console, metrics.jsonl and TensorBoard behind one interface."""

import datetime
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from imagenet_jax.reporting.append_file import AppendFile

Values = Mapping[str, Any]  # numbers, words, or lists of names


class Writer(Protocol):
    """A destination of metrics."""

    def write(self, step: int, split: str, values: Values) -> None:
        """One point of each curve in `values`, after `step` optimizer steps."""
        ...

    def flush(self) -> None:
        """Everything written so far survives a kill once this returns; OSError where it cannot."""
        ...

    def close(self) -> None: ...


class JsonlWriter:
    """`metrics.jsonl`: one object a line, {"step", "split", ...values}, flushed line by line."""

    def __init__(self, path: Path, resume_step: int = 0):
        """Keep the lines up to `resume_step`: later ones will be written again."""
        if path.exists():
            part = path.with_name(f".{path.name}.{os.getpid()}")
            part.write_text("".join(_lines_up_to(path, resume_step)))
            part.replace(path)
        self._file = AppendFile(path)

    def write(self, step: int, split: str, values: Values) -> None:
        line = json.dumps({"step": step, "split": split, **values}) + "\n"
        self._file.write(line.encode())

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _lines_up_to(path: Path, step: int) -> list[str]:
    lines = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                lines.append(line)
        except json.JSONDecodeError:
            continue  # the line that a kill tore
    return lines


class TensorBoardWriter:
    """Event files, one per start; points after `resume_step` of the run before are dropped."""

    def __init__(self, directory: Path, resume_step: int = 0):
        # A second of imports that eval does not need.
        from imagenet_jax.reporting import event_files

        event_files.truncate(directory, resume_step)
        self._frame = event_files.frame
        self._file = event_files.new_event_file(directory, resume_step)

    def write(self, step: int, split: str, values: Values) -> None:
        from tensorboardX.proto.event_pb2 import Event

        group = f"{split}/{values['weights']}" if "weights" in values else split
        event = Event(wall_time=time.time(), step=step)
        for name, value in values.items():
            if isinstance(value, int | float):
                event.summary.value.add(tag=f"{group}/{name}", simple_value=value)
        self._file.write(self._frame(event.SerializeToString()))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class ConsoleWriter:
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


class Writers:
    """Several writers as one."""

    def __init__(self, *writers: Writer):
        self._writers = list(writers)

    def add(self, writer: Writer) -> None:
        self._writers.append(writer)

    def write(self, step: int, split: str, values: Values) -> None:
        for writer in self._writers:
            writer.write(step, split, values)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
