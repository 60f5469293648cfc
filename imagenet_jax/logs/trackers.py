"""Writers for the tracking services of `config.log`: Weights & Biases and MLflow.

They receive the same curves and images as TensorBoard; W&B also receives histograms. With
WANDB_MODE=offline, W&B keeps the run in the workdir for `wandb sync`. MLFLOW_TRACKING_URI sets the
server of MLflow; the default is the file mlflow.db in the current directory.
"""

import contextlib
import importlib.util
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from imagenet_jax import config as config_io
from imagenet_jax.errors import UserError, one_line
from imagenet_jax.files import read_json, write_json
from imagenet_jax.logs.writers import Forwarder, Histogram, Values, Writer, name_curves, name_images

_PATIENCE = 60.0  # seconds to wait for a service at the end of a run
_WAITING = 10_000  # maximum number of waiting calls; more are dropped
_WANDB_PATIENCE = 30  # seconds to wait for the server
_MLFLOW_PARAMS = 100  # maximum number of parameters in one call


def require_services(config: ConfigDict) -> None:
    """Raise UserError if a service of `config.log` is not installed, or needs a login."""
    if config.log.wandb:
        require_package("log.wandb", "wandb")
        mode, key = _read_wandb_login()
        if mode in ("online", "shared") and not key:
            raise UserError(
                "config.log.wandb needs a login: run `wandb login`, set WANDB_API_KEY, or keep the "
                "run here with WANDB_MODE=offline"
            )
    if config.log.mlflow:
        require_package("log.mlflow", "mlflow")


def require_package(field: str, package: str) -> None:
    """Raise UserError if the package that `config.FIELD` needs is not installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"config.{field} needs the package {package}: pip install -e '.[{package}]' -c "
            "constraints.txt"
        )


def _read_wandb_login() -> tuple[str, object]:
    """Return WANDB_MODE and the credentials, without asking the user."""
    import wandb
    from requests.utils import get_netrc_auth

    settings = wandb.setup().settings
    key = settings.api_key or settings.identity_token_file
    return settings.mode, key or get_netrc_auth(settings.base_url)


def open_trackers(config: ConfigDict, workdir: Path, warn: Callable[[str], None]) -> list[Writer]:
    """Return a writer for each service. `warn` is called with a line if one fails."""
    log, values = config.log, config.to_dict()
    openers: dict[str, Callable[[], Writer]] = {}
    if log.wandb:
        openers["W&B"] = lambda: WandbWriter(log.wandb, workdir, values, warn)
    if log.mlflow:
        openers["MLflow"] = lambda: MlflowWriter(log.mlflow, workdir, config_io.flatten(config))
    return [BackgroundWriter(name, open_writer, warn) for name, open_writer in openers.items()]


class TrackedRun:
    """A file with the service's run ID of a workdir, and the last step that was sent of each curve.

    A restart continues the same run. Steps that are computed again are not sent again, because
    neither service can remove a point.

    Attributes:
      id: ID of the run, or None if there is none yet.
    """

    def __init__(self, path: Path, project: str):
        """Read the file, unless it is damaged or belongs to another project."""
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


class WandbWriter(Writer):
    """Writes to one W&B run per workdir, recorded in `wandb.json` and continued by restarts.

    The x-axis is the optimizer step, logged as "step". W&B's own step counter cannot go back.
    """

    def __init__(
        self,
        project: str,
        workdir: Path,
        config: Mapping[str, Any],
        warn: Callable[[str], None] = print,
    ):
        """Start or continue the run. If W&B cannot be reached, warn and keep the data offline."""
        import wandb

        self._record = TrackedRun(workdir / "wandb.json", project)
        self._exit_code = 1
        arguments: dict[str, Any] = {
            "project": project, "id": self._record.id, "name": workdir.name, "dir": workdir,
            "config": dict(config), "allow_val_change": True, "resume": "allow",
            # The terminal belongs to the panel; W&B must not write to it or read from it.
            "settings": wandb.Settings(silent=True, console="off", init_timeout=_WANDB_PATIENCE),
        }  # fmt: skip
        try:
            self._run = wandb.init(**arguments)
        except wandb.errors.CommError as e:
            warn(
                f"W&B cannot be reached ({str(e).splitlines()[0]}): the data is kept in "
                f"{workdir / 'wandb'}; send it with `wandb sync`"
            )
            self._run = wandb.init(**arguments, mode="offline")
        self._record.begin(self._run.id)
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, split: str, values: Values) -> None:
        group, numbers = name_curves(split, values)
        self._log(group, step, {f"{group}/{name}": value for name, value in numbers.items()})

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        from wandb import Histogram as WandbHistogram

        drawn = {n: WandbHistogram(np_histogram=given) for n, given in histograms.items()}
        self._log("histograms", step, drawn)

    def images(self, step: int, name: str, pixels: np.ndarray) -> None:
        from wandb import Image

        self._log(name, step, {name: [Image(one) for one in name_images(name, pixels).values()]})

    def _log(self, curve: str, step: int, values: dict[str, Any]) -> None:
        if self._record.is_new(curve, step):
            self._run.log({"step": step, **values})
            self._record.sent(curve, step)

    def end(self, text: str) -> None:
        self._exit_code = 0

    def close(self) -> None:
        self._run.finish(exit_code=self._exit_code)


class MlflowWriter(Writer):
    """Writes to one MLflow run per workdir, recorded in `mlflow.json` and continued by restarts."""

    def __init__(self, experiment: str, workdir: Path, config: Mapping[str, Any]):
        """Start or continue the run. `config` is a flat dictionary."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._record = TrackedRun(workdir / "mlflow.json", experiment)
        self._client = MlflowClient()
        self._status = "FAILED"
        if self._record.id is not None:
            self._run = self._record.id
            self._client.update_run(self._run, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(experiment)
        place = found.experiment_id if found else self._client.create_experiment(experiment)
        self._run = self._client.create_run(place, run_name=workdir.name).info.run_id
        self._record.begin(self._run)
        params = [Param(name, str(value)) for name, value in config.items()]
        for start in range(0, len(params), _MLFLOW_PARAMS):
            self._client.log_batch(self._run, params=params[start : start + _MLFLOW_PARAMS])

    def write(self, step: int, split: str, values: Values) -> None:
        from mlflow.entities import Metric

        group, numbers = name_curves(split, values)
        if self._record.is_new(group, step):
            now = round(1000 * time.time())
            metrics = [Metric(f"{group}/{name}", v, now, step) for name, v in numbers.items()]
            self._client.log_batch(self._run, metrics=metrics)
            self._record.sent(group, step)

    def images(self, step: int, name: str, pixels: np.ndarray) -> None:
        if self._record.is_new(name, step):
            for key, one in name_images(name, pixels, "_").items():
                self._client.log_image(self._run, one, key=key, step=step, synchronous=True)
            self._record.sent(name, step)

    def end(self, text: str) -> None:
        self._status = "FINISHED"

    def close(self) -> None:
        self._client.set_terminated(self._run, self._status)


class BackgroundWriter(Forwarder):
    """Opens and uses a writer in another thread, so that training neither waits nor fails."""

    def __init__(self, name: str, open_writer: Callable[[], Writer], warn: Callable[[str], None]):
        """`warn` is called at the first failure, and if data is lost at the end."""
        self._name, self._open, self._warn = name, open_writer, warn
        self._queue: queue.Queue[Callable[[Writer], None] | None] = queue.Queue(_WAITING)
        self._warned = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def _forward(self, call: Callable[[Writer], None]) -> None:
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            self._fail("is too slow; some points are dropped")

    def close(self) -> None:
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=_PATIENCE)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            self._warn(f"{self._name} did not receive everything within {_PATIENCE:.0f} s")

    def _work(self) -> None:
        writer: Writer | None = None
        try:
            writer = self._open()
        except Exception as e:  # any error: training does not depend on the service
            self._fail(f"cannot be used ({_describe(e)}); training continues without it")
        while (call := self._queue.get()) is not None:
            if writer:
                self._try(call, writer)
        if writer:
            self._try(lambda w: w.close(), writer)

    def _try(self, call: Callable[[Writer], None], writer: Writer) -> None:
        try:
            call(writer)
        except Exception as e:
            self._fail(f"rejects data ({_describe(e)}); training continues")

    def _fail(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(f"{self._name} {text}")


def _describe(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}")
