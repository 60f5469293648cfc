"""Weights & Biases: the same curves, histograms and images as in TensorBoard.

The x-axis is the optimizer step, logged as "step". W&B's own step counter accepts no earlier step.
WANDB_MODE=offline keeps the run in the workdir, for `wandb sync`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from requests.utils import get_netrc_auth

from imagenet_jax.errors import UserError
from imagenet_jax.logs.tracking import TrackedRun
from imagenet_jax.logs.writers import Histogram, Values, Writer, name_curves

_PATIENCE = 30  # seconds to wait for the server


def require_login() -> None:
    """Raise UserError if the run would be sent to a server, and there are no credentials."""
    mode, key = _mode_and_key()
    if mode in ("online", "shared") and not key:
        raise UserError(
            "config.log.wandb needs a login: run `wandb login`, set WANDB_API_KEY, or keep the "
            "run here with WANDB_MODE=offline"
        )


def _mode_and_key() -> tuple[str, object]:
    """Return WANDB_MODE and the credentials, without asking the user."""
    settings = wandb.setup().settings
    key = settings.api_key or settings.identity_token_file
    return settings.mode, key or get_netrc_auth(settings.base_url)


class WandbWriter(Writer):
    """Writes to one W&B run per workdir, recorded in `wandb.json` and continued by restarts."""

    def __init__(
        self,
        project: str,
        workdir: Path,
        config: Mapping[str, Any],
        warn: Callable[[str], None] = print,
    ):
        """Start or continue the run; if W&B cannot be reached, warn and keep the data offline."""
        self._record = TrackedRun(workdir / "wandb.json", project)
        self._exit_code = 1
        arguments: dict[str, Any] = {
            "project": project,
            "id": self._record.id,
            "name": workdir.name,
            "dir": workdir,
            "config": dict(config),
            "allow_val_change": True,
            "resume": "allow",
            # The terminal belongs to the panel; W&B must not write to it or read from it.
            "settings": wandb.Settings(silent=True, console="off", init_timeout=_PATIENCE),
        }
        try:
            self._run = wandb.init(**arguments)
        except wandb.errors.CommError as e:
            warn(
                f"W&B cannot be reached ({str(e).splitlines()[0]}): `wandb sync` sends what is "
                f"kept in {workdir / 'wandb'}"
            )
            self._run = wandb.init(**arguments, mode="offline")
        self._record.begin(self._run.id)
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, split: str, values: Values) -> None:
        group, numbers = name_curves(split, values)
        self._log(group, step, {f"{group}/{name}": value for name, value in numbers.items()})

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        drawn = {
            name: wandb.Histogram(np_histogram=(np.asarray(counts), np.asarray(edges)))
            for name, (counts, edges) in histograms.items()
        }
        self._log("histograms", step, drawn)

    def images(self, step: int, name: str, pixels: np.ndarray) -> None:
        several = pixels if pixels.ndim == 4 else pixels[None]
        self._log(name, step, {name: [wandb.Image(picture) for picture in several]})

    def _log(self, curve: str, step: int, values: dict[str, Any]) -> None:
        if self._record.is_new(curve, step):
            self._run.log({"step": step, **values})
            self._record.sent(curve, step)

    def end(self, text: str) -> None:
        self._exit_code = 0

    def close(self) -> None:
        self._run.finish(exit_code=self._exit_code)
