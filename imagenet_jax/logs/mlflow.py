"""MLflow: the same curves and images as in TensorBoard; it has no histograms.

The environment variable MLFLOW_TRACKING_URI sets the server; the default is the file mlflow.db in
the current directory.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from imagenet_jax.logs.tracking import TrackedRun
from imagenet_jax.logs.writers import Values, Writer, name_curves

_PARAMS = 100  # largest number of parameters in one call


class MlflowWriter(Writer):
    """Writes to one MLflow run per workdir, recorded in `mlflow.json` and continued by restarts."""

    def __init__(self, experiment: str, workdir: Path, config: Mapping[str, Any]):
        """Start or continue the run; `config` is flat."""
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
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
        for start in range(0, len(params), _PARAMS):
            self._client.log_batch(self._run, params=params[start : start + _PARAMS])

    def write(self, step: int, split: str, values: Values) -> None:
        group, numbers = name_curves(split, values)
        if not self._record.is_new(group, step):
            return
        now = round(1000 * time.time())
        metrics = [Metric(f"{group}/{name}", v, now, step) for name, v in numbers.items()]
        self._client.log_batch(self._run, metrics=metrics)
        self._record.sent(group, step)

    def images(self, step: int, name: str, pixels: np.ndarray) -> None:
        if not self._record.is_new(name, step):
            return
        several = pixels if pixels.ndim == 4 else pixels[None]
        for i, picture in enumerate(several):
            key = f"{name}_{i}" if pixels.ndim == 4 else name
            self._client.log_image(self._run, picture, key=key, step=step, synchronous=True)
        self._record.sent(name, step)

    def end(self, text: str) -> None:
        self._status = "FINISHED"

    def close(self) -> None:
        self._client.set_terminated(self._run, self._status)
