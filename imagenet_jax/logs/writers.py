"""Where numbers and pictures go: one interface, and metrics.jsonl behind it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imagenet_jax import strict_json
from imagenet_jax.files import read_json_lines, write_atomically
from imagenet_jax.logs.append_file import AppendFile

Values = Mapping[str, Any]  # numbers, words, or lists of names
Histogram = tuple[np.ndarray, np.ndarray]  # counts [N], edges [N + 1] from low to high


class Writer:
    """A destination of metrics; one that shows no histograms or images leaves them out."""

    def write(self, step: int, split: str, values: Values) -> None:
        """One point of each curve in `values`, after `step` optimizer steps."""
        raise NotImplementedError

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """Counts and edges of the bins of each name, after `step` optimizer steps."""

    def images(self, step: int, name: str, pixels: np.ndarray) -> None:
        """u8[H, W, 3], or several as u8[N, H, W, 3], after `step` optimizer steps."""

    def end(self, text: str) -> None:
        """The run ends as it should; `text` says how. Without it, `close` means that it failed."""

    def flush(self) -> None:
        """Everything written so far survives a kill once this returns; OSError where it cannot."""

    def close(self) -> None:
        """Nothing is written afterwards."""


def curves(split: str, values: Values) -> tuple[str, dict[str, float]]:
    """The group of curves that `values` are points of, and the numbers among them."""
    group = f"{split}/{values['weights']}" if "weights" in values else split
    return group, {k: v for k, v in values.items() if isinstance(v, int | float)}


class JsonlWriter(Writer):
    """`metrics.jsonl`: one object a line, {"step", "split", ...values}, flushed line by line."""

    def __init__(self, path: Path, resume_step: int = 0):
        """Keep the lines up to `resume_step`: later ones will be written again."""
        if path.exists():
            lines = read_json_lines(path, skip_damaged=True)
            kept = [strict_json.dumps(line) for line in lines if line["step"] <= resume_step]
            write_atomically(path, "".join(f"{line}\n" for line in kept))
        self._path, self._file = path, AppendFile(path)

    def records(self) -> list[dict[str, Any]]:
        """What the file holds."""
        return read_json_lines(self._path)

    def write(self, step: int, split: str, values: Values) -> None:
        line = strict_json.dumps({"step": step, "split": split, **values}) + "\n"
        self._file.write(line.encode())

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Writers(Writer):
    """Several writers as one."""

    def __init__(self, *writers: Writer):
        self._writers = list(writers)

    def add(self, writer: Writer) -> None:
        self._writers.append(writer)

    def write(self, step: int, split: str, values: Values) -> None:
        for writer in self._writers:
            writer.write(step, split, values)

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        for writer in self._writers:
            writer.histograms(step, histograms)

    def images(self, step: int, name: str, pixels: np.ndarray) -> None:
        for writer in self._writers:
            writer.images(step, name, pixels)

    def end(self, text: str) -> None:
        for writer in self._writers:
            writer.end(text)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
