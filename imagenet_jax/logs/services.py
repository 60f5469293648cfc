"""The services that a run tells its numbers, where config.log names a project of theirs."""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from imagenet_jax import config as config_io
from imagenet_jax.logs.tracking import BackgroundWriter, require_package
from imagenet_jax.logs.writers import Writer


def require_services(config: ConfigDict) -> None:
    """UserError where a service that `config.log` names is not installed, or lacks a login."""
    if config.log.wandb:
        require_package("log.wandb", "wandb")
        from imagenet_jax.logs.wandb import require_login

        require_login()
    if config.log.mlflow:
        require_package("log.mlflow", "mlflow")


def service_writers(config: ConfigDict, workdir: Path, warn: Callable[[str], None]) -> list[Writer]:
    """A writer for each; `warn` gets a line where one cannot be used."""
    writers: list[Writer] = []

    def wandb() -> Writer:
        from imagenet_jax.logs.wandb import WandbWriter

        return WandbWriter(config.log.wandb, workdir, config.to_dict(), warn)

    def mlflow() -> Writer:
        from imagenet_jax.logs.mlflow import MlflowWriter

        return MlflowWriter(config.log.mlflow, workdir, config_io.flatten(config))

    if config.log.wandb:
        writers.append(BackgroundWriter("W&B", wandb, warn))
    if config.log.mlflow:
        writers.append(BackgroundWriter("MLflow", mlflow, warn))
    return writers
