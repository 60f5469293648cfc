"""Training whose output cannot be written."""

from pathlib import Path

import pytest

from imagenet_jax import cli, main
from imagenet_jax import config as config_io
from imagenet_jax.training.checkpoint import Checkpoints


def test_training_continues_without_its_output(tiny, light, tmp_path, monkeypatch, capsys):
    """Checkpoints and metrics are the same as with output, and the exit code is 0."""
    monkeypatch.setattr(config_io, "load", lambda *_: tiny)
    monkeypatch.setattr("sys.argv", ["main", "--config=x.py", f"--workdir={tmp_path}"])
    with Path("/dev/full").open("w") as full, pytest.raises(SystemExit) as caught:
        monkeypatch.setattr("sys.stdout", full)
        cli.run(main.main, lost_output="ignored")
    assert caught.value.code == 0
    assert capsys.readouterr().err.count("cannot be written") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6
    assert Checkpoints(tmp_path / "checkpoints", write=False).steps() == [8]
