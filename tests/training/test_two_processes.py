"""Two real processes on loopback: the run of one, one writer, one moment to stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import REPOSITORY

SETTINGS = (
    "batch_size=48", "epochs=0.7", "model.width=0.0625", "augment.image_size=16",
    "eval.image_size=16", "eval.resize=16", "eval.batch_size=100", "log.every_steps=2",
    "log.tensorboard=false", "data.threads=1", "optim.peak_lr=0.05", "ema.decay=0.9",
    "optim.warmup_epochs=0", "checkpoint.every_epochs=0",
)  # fmt: skip


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _start(workdir, digits_path, *more, devices=1, module="main"):
    args = [f"--config.{x}" for x in (f"data.path={digits_path}", *SETTINGS)]
    args = ["--config=configs/quickstart.py", *args] if module == "main" else []
    env = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", f"imagenet_jax.{module}", f"--workdir={workdir}", *args, *more],
        cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _start_two(workdir, digits_path, *more):
    port = _free_port()
    flags = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    return [_start(workdir, digits_path, *flags, f"--process_id={i}", *more) for i in range(2)]


def _finish(*processes):
    outputs = []
    try:
        for process in processes:
            outputs.append((*process.communicate(timeout=200), process.returncode))
    finally:
        for process in processes:
            process.kill()
    return outputs


def _metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _assert_same_run(one, two):
    """Losses to float32's rounding in sums over two devices."""
    assert [(x["step"], x["split"]) for x in one] == [(x["step"], x["split"]) for x in two]
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-3)
        if a["split"] != "train":
            assert a["count"] == b["count"] == 360


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, digits_path):
    """One process with two devices."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    ((_, errors, code),) = _finish(_start(workdir, digits_path, devices=2))
    assert code == 0, errors
    return workdir


def test_two_processes_train_and_evaluate_as_one(undisturbed, digits_path, tmp_path):
    run = tmp_path / "run"
    first, second = _finish(*_start_two(run, digits_path))
    assert first[2] == second[2] == 0, first[1] + second[1]
    assert "finished: 21 steps" in first[0] and "finished" not in second[0]
    _assert_same_run(_metrics(undisturbed), _metrics(run))
    # What two saved, one opens: every image is counted once again.
    ((_, errors, code),) = _finish(_start(run, digits_path, module="eval"))
    assert code == 0, errors
    (result,) = (json.loads(f.read_text()) for f in (run / "eval").glob("*.json"))
    last = [x for x in _metrics(run) if x["split"] == "validation"][0]
    assert result["count"] == 360
    np.testing.assert_allclose(result["loss"], last["loss"], rtol=1e-4)


@pytest.mark.slow
def test_a_signal_to_one_stops_both_and_one_process_continues(undisturbed, digits_path, tmp_path):
    run = tmp_path / "run"
    processes = _start_two(run, digits_path)
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert all(p.poll() is None for p in processes), _finish(*processes)
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    first, second = _finish(*processes)
    assert first[2] == second[2] == 143, first[1] + second[1]
    assert "stopped by signal 15 after step" in first[0]
    ((out, errors, code),) = _finish(_start(run, digits_path, devices=2))
    assert code == 0, errors
    assert "continuing after step" in out
    _assert_same_run(_metrics(undisturbed), _metrics(run))


@pytest.mark.slow
def test_another_config_in_one_process_is_named_by_both(digits_path, tmp_path):
    port = _free_port()
    flags = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    outputs = _finish(
        _start(tmp_path / "run", digits_path, *flags, "--process_id=0"),
        _start(tmp_path / "run", digits_path, *flags, "--process_id=1", "--config.seed=1"),
    )
    for _, errors, code in outputs:
        assert code == 1
        assert "error: config of process 1 is not that of process 0" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_death_of_one_ends_the_other_within_a_minute(digits_path, tmp_path):
    run = tmp_path / "run"
    processes = _start_two(run, digits_path, "--config.epochs=400")
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert all(p.poll() is None for p in processes), _finish(*processes)
        time.sleep(0.1)
    processes[1].kill()
    began = time.monotonic()
    try:
        assert processes[0].wait(timeout=90) not in (0, 143)
        assert time.monotonic() - began < 60
    finally:
        _finish(*processes)
