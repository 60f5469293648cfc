"""Fixtures of a finished run of a few steps, and of the same run published."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Finished(NamedTuple):
    workdir: Path
    config: Any  # ConfigDict


@pytest.fixture(scope="session")
def finished(tmp_path_factory, digits_path):
    """A completed run of 8 steps: (workdir, config)."""
    from conftest import tiny_config  # which imports this module

    from imagenet_jax import train as loop
    from imagenet_jax.config import python_files

    python_files.executed.clear()  # other tests load configs in this process
    config = tiny_config(digits_path, "small_cnn")
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert loop.train(config, workdir) == 0
    return Finished(workdir, config)


@pytest.fixture(scope="session")
def baseline(finished):
    """That run published as `baselines/tiny`; tests must not change it."""
    from imagenet_jax.baselines.publishing import publish

    folder = finished.workdir.parent / "baselines" / "tiny"
    publish(finished.workdir, folder, allow_dirty=True)
    return folder
