"""Tracking services that `config.log` names: Weights & Biases and MLflow."""

import contextlib
import importlib.util
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imagenet_jax import config as config_io
from imagenet_jax.errors import UserError, one_line
from imagenet_jax.files import read_json, write_json
from imagenet_jax.logs.writers import Forwarder, Writer

_PATIENCE = 60.0  # seconds that the end of a run waits for a service
_WAITING = 10_000  # calls that wait for a service before new ones are dropped


def require_services(config: ConfigDict) -> None:
    """Raise UserError if a service of `config.log` is not installed, or needs a login."""
    if config.log.wandb:
        require_package("log.wandb", "wandb")
        from imagenet_jax.logs.wandb import require_login

        require_login()
    if config.log.mlflow:
        require_package("log.mlflow", "mlflow")


def require_package(field: str, package: str) -> None:
    """Raise UserError if the package that `config.FIELD` needs is not installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"config.{field} needs the package {package}: pip install -e '.[{package}]' -c "
            "constraints.txt"
        )


def service_writers(config: ConfigDict, workdir: Path, warn: Callable[[str], None]) -> list[Writer]:
    """Return a writer for each service; `warn` gets a line if one fails."""
    writers: list[Writer] = []

    def open_wandb() -> Writer:
        from imagenet_jax.logs.wandb import WandbWriter

        return WandbWriter(config.log.wandb, workdir, config.to_dict(), warn)

    def open_mlflow() -> Writer:
        from imagenet_jax.logs.mlflow import MlflowWriter

        return MlflowWriter(config.log.mlflow, workdir, config_io.flatten(config))

    if config.log.wandb:
        writers.append(BackgroundWriter("W&B", open_wandb, warn))
    if config.log.mlflow:
        writers.append(BackgroundWriter("MLflow", open_mlflow, warn))
    return writers


class TrackedRun:
    """The file that records the service's run of a workdir, and the last step of each curve.

    A restart continues the same run. Steps that were sent before and are computed again are not
    sent again, because neither service can remove a point.

    Attributes:
      id: of the run; None if there is none yet.
    """

    def __init__(self, path: Path, project: str):
        """Read the file; one of another project is ignored, as is a damaged one."""
        self._path, self._project = path, project
        record: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            record = read_json(path)
        if record.get("project") != project:
            record = {}
        self.id: str | None = record.get("run")
        self._sent: dict[str, int] = record.get("sent", {})
        self._before = dict(self._sent)

    def begin(self, run: str) -> None:
        """Record the service's id of the run."""
        self.id = run
        self._save()

    def is_new(self, curve: str, step: int) -> bool:
        """Return whether no earlier start has sent `step` of `curve`."""
        return step > self._before.get(curve, -1)

    def sent(self, curve: str, step: int) -> None:
        self._sent[curve] = max(step, self._sent.get(curve, -1))
        self._save()

    def _save(self) -> None:
        record = {"project": self._project, "run": self.id, "sent": self._sent}
        with contextlib.suppress(OSError):  # a full disk; the next call tries again
            write_json(self._path, record)


class BackgroundWriter(Forwarder):
    """A writer opened and used in another thread; training neither waits for it nor fails."""

    def __init__(self, name: str, open_writer: Callable[[], Writer], warn: Callable[[str], None]):
        """`warn` gets one line at the first failure, and one if data is lost at the end."""
        self._name, self._open, self._warn = name, open_writer, warn
        self._queue: queue.Queue[Callable[[Writer], None] | None] = queue.Queue(_WAITING)
        self._warned = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def _forward(self, call: Callable[[Writer], None]) -> None:
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            self._fail("takes too long; points are left out")

    def close(self) -> None:
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=_PATIENCE)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            self._warn(f"{self._name} did not take everything in {_PATIENCE:.0f} s")

    def _work(self) -> None:
        writer: Writer | None = None
        try:
            writer = self._open()
        except Exception as e:  # any error: training does not depend on the service
            self._fail(f"cannot be used ({_describe(e)}); going on without it")
        while (call := self._queue.get()) is not None:
            if writer:
                self._try(call, writer)
        if writer:
            self._try(lambda w: w.close(), writer)

    def _try(self, call: Callable[[Writer], None], writer: Writer) -> None:
        try:
            call(writer)
        except Exception as e:
            self._fail(f"does not take what it is sent ({_describe(e)}); going on")

    def _fail(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(f"{self._name} {text}")


def _describe(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}")
