"""Destinations of metrics and pictures: the interface `Writer`, and the file metrics.jsonl."""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imagenet_jax.files import dump_json, read_json_lines, write_atomically

Values = Mapping[str, Any]  # numbers, text, or lists of names
Histogram = tuple[np.ndarray, np.ndarray]  # counts [N], edges [N + 1] in ascending order


class Writer:
    """A destination of metrics. By default, histograms and images are ignored."""

    def write(self, step: int, split: str, values: Values) -> None:
        """Write one point of each curve in `values`, measured after `step` optimizer steps."""
        raise NotImplementedError

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """Write histograms, by name, of the state after `step` optimizer steps."""

    def images(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Write an image u8[H, W, 3], or several u8[N, H, W, 3]."""

    def end(self, text: str) -> None:
        """Mark the run as successful; `text` says how it ended. Without it, the run has failed."""

    def flush(self) -> None:
        """Flush to the disk. Raises OSError if that is not possible."""

    def close(self) -> None:
        """Close the writer, which is not used afterwards."""


class Forwarder(Writer):
    """A writer that passes each call on to other writers."""

    def _forward(self, call: Callable[[Writer], None]) -> None:
        raise NotImplementedError

    def write(self, step: int, split: str, values: Values) -> None:
        self._forward(lambda writer: writer.write(step, split, values))

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        self._forward(lambda writer: writer.histograms(step, histograms))

    def images(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._forward(lambda writer: writer.images(step, name, pixels))

    def end(self, text: str) -> None:
        self._forward(lambda writer: writer.end(text))


class Writers(Forwarder):
    """Several writers as one."""

    def __init__(self, *writers: Writer):
        self._writers = list(writers)

    def add(self, writer: Writer) -> None:
        self._writers.append(writer)

    def _forward(self, call: Callable[[Writer], None]) -> None:
        for writer in self._writers:
            call(writer)

    def flush(self) -> None:
        self._forward(lambda writer: writer.flush())

    def close(self) -> None:
        self._forward(lambda writer: writer.close())


def name_curves(split: str, values: Values) -> tuple[str, dict[str, float]]:
    """Return the group of curves that `values` belong to, and the numbers among them."""
    group = f"{split}/{values['weights']}" if "weights" in values else split
    return group, {k: v for k, v in values.items() if isinstance(v, int | float)}


def name_images(name: str, pixels: np.ndarray, separator: str = "/") -> dict[str, np.ndarray]:
    """Return the u8[H, W, 3] images by name: `name` for one image, numbered names for several."""
    if pixels.ndim == 3:
        return {name: pixels}
    return {f"{name}{separator}{i}": one for i, one in enumerate(pixels)}


class JsonlWriter(Writer):
    """`metrics.jsonl`: one JSON object per line, {"step", "split", ...values}."""

    def __init__(self, path: Path, resume_step: int = 0):
        """Keep the lines up to `resume_step`. The run will write later ones again."""
        if path.exists():
            lines = read_json_lines(path, skip_damaged=True)
            kept = [dump_json(line) for line in lines if line["step"] <= resume_step]
            write_atomically(path, "".join(f"{line}\n" for line in kept))
        self._path, self._file = path, AppendFile(path)

    def records(self) -> list[dict[str, Any]]:
        """Return the objects of all lines."""
        return read_json_lines(self._path)

    def write(self, step: int, split: str, values: Values) -> None:
        line = dump_json({"step": step, "split": split, **values}) + "\n"
        self._file.write(line.encode())

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class AppendFile:
    """A file that grows only by whole records.

    While the disk is full or not writable, records wait in memory to be written later.
    """

    def __init__(self, path: Path):
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        self._end = os.fstat(self._file).st_size
        self._waiting = b""

    def write(self, record: bytes) -> None:
        """Append a record, now if possible, otherwise later. Never raises OSError."""
        self._waiting += record
        with contextlib.suppress(OSError):
            self._write_waiting()

    def flush(self) -> None:
        """Flush all records to the disk. Raises OSError if that is not possible."""
        self._write_waiting()
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file. Records that still cannot be written are lost."""
        with contextlib.suppress(OSError):
            self._write_waiting()
        os.close(self._file)

    def _write_waiting(self) -> None:
        done = 0
        try:
            while done < len(self._waiting):
                done += os.pwrite(self._file, self._waiting[done:], self._end + done)
        except OSError:
            with contextlib.suppress(OSError):  # no partial record for readers
                os.ftruncate(self._file, self._end)
            raise
        self._end += done
        self._waiting = b""
