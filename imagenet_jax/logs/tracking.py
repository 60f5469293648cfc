"""Services that keep runs elsewhere: which run is this workdir's, and what it has been told."""

import contextlib
import importlib.util
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imagenet_jax.errors import UserError, one_line
from imagenet_jax.files import read_json, write_json
from imagenet_jax.logs.writers import Histogram, Values, Writer

_PATIENCE = 60.0  # seconds that the end of a run waits for a service
_WAITING = 10_000  # points that wait for a service before new ones are dropped


def require_package(field: str, package: str) -> None:
    """UserError where the package, and extra, that `config.FIELD` needs is not installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"config.{field} needs the package {package}: pip install -e '.[{package}]' -c "
            "constraints.txt"
        )


class TrackedRun:
    """The file that says which run of a service is this workdir's, and how far its curves are.

    A restart goes on with the same run. Steps that the run before had sent, and that are computed
    again, are not sent again: neither service can take a point back, both would show it twice.

    Attributes:
      id: of the run; None: there is none yet.
    """

    def __init__(self, path: Path, project: str):
        """`project` is where the run is; a file of another project is not continued."""
        self._path = path
        record: dict[str, Any] = {}
        # Without it the run begins anew there: worth no more than that.
        with contextlib.suppress(OSError, ValueError):
            record = read_json(path)
        if record.get("project") != project:
            record = {}
        self.id: str | None = record.get("run")
        self._project = project
        self._sent: dict[str, int] = record.get("sent", {})
        self._before = dict(self._sent)

    def begin(self, run: str) -> None:
        """The service calls it `run`."""
        self.id = run
        self._save()

    def is_new(self, curve: str, step: int) -> bool:
        """Whether no run before this one has sent `step` of `curve`."""
        return step > self._before.get(curve, -1)

    def sent(self, curve: str, step: int) -> None:
        self._sent[curve] = max(step, self._sent.get(curve, -1))
        self._save()

    def _save(self) -> None:
        record = {"project": self._project, "run": self.id, "sent": self._sent}
        with contextlib.suppress(OSError):  # a full disk: the run goes on, and tries again
            write_json(self._path, record)


class BackgroundWriter(Writer):
    """A writer that another thread opens and writes to: training neither waits for it nor fails."""

    def __init__(self, name: str, open_writer: Callable[[], Writer], warn: Callable[[str], None]):
        """`warn` gets one line where the service called `name` fails, and one where it is lost."""
        self._name, self._open, self._warn = name, open_writer, warn
        self._queue: queue.Queue[Callable[[Writer], None] | None] = queue.Queue(_WAITING)
        self._told = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def write(self, step: int, split: str, values: Values) -> None:
        self._put(lambda writer: writer.write(step, split, values))

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        self._put(lambda writer: writer.histograms(step, histograms))

    def images(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._put(lambda writer: writer.images(step, name, pixels))

    def end(self, text: str) -> None:
        self._put(lambda writer: writer.end(text))

    def close(self) -> None:
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=_PATIENCE)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            self._warn(f"{self._name} did not take everything in {_PATIENCE:.0f} s")

    def _put(self, call: Callable[[Writer], None]) -> None:
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            self._fail("takes too long; points are left out")

    def _work(self) -> None:
        writer: Writer | None = None
        try:
            writer = self._open()
        except Exception as e:  # of whatever kind: training does not depend on it
            self._fail(f"cannot be used ({_named(e)}); going on without it")
        while (call := self._queue.get()) is not None:
            if writer:
                self._try(call, writer)
        if writer:
            self._try(_close, writer)

    def _try(self, call: Callable[[Writer], None], writer: Writer) -> None:
        try:
            call(writer)
        except Exception as e:
            self._fail(f"does not take what it is sent ({_named(e)}); going on")

    def _fail(self, text: str) -> None:
        if not self._told:
            self._told = True
            self._warn(f"{self._name} {text}")


def _close(writer: Writer) -> None:
    writer.close()


def _named(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}")
