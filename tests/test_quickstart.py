"""What the README promises of the quickstart, run as the README says."""

import json
import signal
import time

import jax
import numpy as np
import pytest

from imagenet_jax import config as config_io
from imagenet_jax.training.checkpoint import Checkpoints
from imagenet_jax.training.experiment import make_experiment
from imagenet_jax.training.sharding import make_mesh


def _start(run_module, workdir, data, *more):
    return run_module(
        "imagenet_jax.main",
        "--config=configs/quickstart.py",
        f"--workdir={workdir}",
        f"--config.data.path={data}",
        *more,
        flags="",  # compiled as usual
    )


def _final_state(workdir):
    config = config_io.from_json((workdir / "config.json").read_text())
    checkpoints = Checkpoints(workdir / "checkpoints", write=False)
    one_device = make_experiment(config, make_mesh(1, jax.devices()[:1]))
    step = checkpoints.find("latest")
    return step, jax.device_get(checkpoints.restore(one_device.abstract, step))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.full) for s in (1, 2))])
def test_reaches_98_percent(run_module, tmp_path, digits_path, seed):
    training = _start(run_module, tmp_path / "run", digits_path, f"--config.seed={seed}")
    _, err = training.communicate(timeout=600)
    assert training.returncode == 0, err
    evaluation = run_module("imagenet_jax.eval", f"--workdir={tmp_path}/run", flags="")
    out, err = evaluation.communicate(timeout=120)
    assert evaluation.returncode == 0, err
    (result,) = (tmp_path / "run" / "eval").glob("*.json")
    result = json.loads(result.read_text())
    assert result["count"] == 360
    assert result["top1"] >= 0.98
    assert "validation" in out and str(tmp_path / "run" / "checkpoints") in out


@pytest.mark.full
def test_killed_half_way_ends_with_the_weights_of_one_left_alone(run_module, tmp_path, digits_path):
    whole = _start(run_module, tmp_path / "whole", digits_path)
    _, err = whole.communicate(timeout=600)
    assert whole.returncode == 0, err

    metrics = tmp_path / "killed" / "metrics.jsonl"
    for last_step in (60, 160):  # before and after the first checkpoint
        killed = _start(run_module, tmp_path / "killed", digits_path)
        deadline = time.time() + 300
        while not metrics.exists() or f'"step": {last_step},' not in metrics.read_text():
            assert time.time() < deadline and killed.poll() is None
            time.sleep(0.05)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    again = _start(run_module, tmp_path / "killed", digits_path)
    out, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    assert "continuing after step" in out

    (step_a, a), (step_b, b) = _final_state(tmp_path / "whole"), _final_state(tmp_path / "killed")
    assert step_a == step_b
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.full
def test_sigterm_to_the_process_saves_and_exits_143(run_module, tmp_path, digits_path):
    training = _start(run_module, tmp_path / "run", digits_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.time() + 300
    while not metrics.exists() or not metrics.read_text():
        assert time.time() < deadline and training.poll() is None
        time.sleep(0.05)
    training.send_signal(signal.SIGTERM)
    out, err = training.communicate(timeout=120)
    assert training.returncode == 143, err
    saved = Checkpoints(tmp_path / "run" / "checkpoints", write=False).find("latest")
    assert f"after step {saved}, saved" in out
