"""A refused start does not change the files that describe the workdir."""

import json
import shutil

import pytest
from conftest import tiny_config

from imagenet_jax import train as loop
from imagenet_jax.errors import UserError
from imagenet_jax.runtime import workdir as workdirs

FILES = ("config.json", "provenance.json", "classes.json")


@pytest.fixture
def workdir(saved_run, tmp_path):
    shutil.copytree(saved_run.workdir, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("field", "value", "leaf"),
    [
        ("ema.decay", 0.0, "ema."),
        ("model.width", 1 / 8, "batch_stats."),
        ("optim.name", "adamw", "opt_state"),
    ],
)
def test_config_with_different_arrays_is_refused_before_anything_is_written(
    workdir, digits_path, field, value, leaf
):
    before = [(workdir / name).read_bytes() for name in FILES]
    config = tiny_config(digits_path)
    config.resume_with_changes = True
    group, name = field.split(".")
    config[group][name] = value
    with pytest.raises(UserError, match=f"has different arrays.*{leaf}"):
        loop.train(config, workdir)
    assert [(workdir / name).read_bytes() for name in FILES] == before
    # The original command is still accepted.
    workdirs.check_start(workdir, tiny_config(digits_path), json.loads(before[1]))


def test_strict_restore_is_refused_before_anything_is_written(workdir, digits_path):
    before = [(workdir / name).read_bytes() for name in FILES]
    next((workdir / "checkpoints" / "3" / "optimizer").rglob("manifest.ocdbt")).unlink()
    with pytest.raises(UserError, match="is missing.*--strict_restore"):
        loop.train(tiny_config(digits_path), workdir, strict_restore=True)
    assert [(workdir / name).read_bytes() for name in FILES] == before
