"""Runs of several real processes on loopback: one result, one writer, one step to stop at."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import FASTER_COMPILATION, REPOSITORY

from imagenet_jax.logs.throughput import MEASURED
from imagenet_jax.runtime.workdir import read_config
from imagenet_jax.training.checkpoint import Checkpoints
from imagenet_jax.training.experiment import make_experiment
from imagenet_jax.training.sharding import make_mesh

# A small learning rate, so that rounding errors do not grow and losses identify the images.
SETTINGS = (
    "batch_size=48", "epochs=0.7", "model.width=0.0625", "augment.image_size=16",
    "eval.image_size=16", "eval.resize=16", "eval.batch_size=100", "log.every_steps=2",
    "log.tensorboard=false", "data.threads=1", "optim.base_lr=0.001", "ema.decay=0.9",
    "optim.warmup_epochs=0", "checkpoint.every_epochs=0",
)  # fmt: skip


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _start(workdir, digits_path, *more, devices=1, module="main", code=REPOSITORY):
    args = [f"--config.{x}" for x in (f"data.path={digits_path}", *SETTINGS)]
    args = ["--config=configs/quickstart.py", *args] if module == "main" else []
    env = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {FASTER_COMPILATION}",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", f"imagenet_jax.{module}", f"--workdir={workdir}", *args, *more],
        cwd=code, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _start_all(count, workdir, digits_path, *more):
    flags = [f"--coordinator=127.0.0.1:{_free_port()}", f"--num_processes={count}"]
    return [_start(workdir, digits_path, *flags, f"--process_id={i}", *more) for i in range(count)]


def _finish(*processes):
    outputs = []
    try:
        for process in processes:
            outputs.append((*process.communicate(timeout=600), process.returncode))
    finally:
        for process in processes:
            process.kill()
    return outputs


def _metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _assert_same_run(one, two):
    """Compare losses up to float32 rounding in sums over two devices."""
    assert [(x["step"], x["split"]) for x in one] == [(x["step"], x["split"]) for x in two]
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-3)
        if a["split"] != "train":
            assert a["count"] == b["count"] == 360


def _wait_for(path, processes):
    while not path.exists() or (path.is_file() and not path.read_text()):
        assert all(p.poll() is None for p in processes), _finish(*processes)
        time.sleep(0.1)


def _last_state(workdir):
    """Return weights, EMA, optimizer and step of the last checkpoint, on the host."""
    run = make_experiment(read_config(workdir), make_mesh(1, jax.devices()[:2]))
    checkpoints = Checkpoints(workdir / "checkpoints", write=False)
    return jax.device_get(checkpoints.restore(run.abstract, checkpoints.find("latest"))[0])


def _assert_same_bits(a, b):
    trees = _last_state(a), _last_state(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(trees[0]), jax.tree.leaves(trees[1]), strict=True
    ):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, digits_path):
    """One process with two devices."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    ((_, errors, code),) = _finish(_start(workdir, digits_path, devices=2))
    assert code == 0, errors
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.full)])
def test_several_processes_train_and_evaluate_as_one(undisturbed, digits_path, tmp_path, count):
    """The 360 images are neither whole batches of 100 nor whole batches per process."""
    run = tmp_path / "run"
    outputs = _finish(*_start_all(count, run, digits_path))
    assert [code for _, _, code in outputs] == [0] * count, [errors for _, errors, _ in outputs]
    assert "finished: 21 steps" in outputs[0][0]
    assert not any("finished" in out for out, _, _ in outputs[1:])
    _assert_same_run(_metrics(undisturbed), _metrics(run))
    # One process opens what several saved, and counts every image once.
    ((_, errors, code),) = _finish(_start(run, digits_path, module="eval"))
    assert code == 0, errors
    (result,) = (json.loads(f.read_text()) for f in (run / "eval").glob("*.json"))
    last = [x for x in _metrics(run) if x["split"] == "validation"][0]
    assert result["count"] == 360
    np.testing.assert_allclose(result["loss"], last["loss"], rtol=1e-4)


@pytest.mark.full
def test_processes_with_different_listings_evaluate_the_same_checkpoint(saved_run, tmp_path):
    """Each process has its own copy of the workdir; the second copy has a newer checkpoint."""
    flags = [f"--coordinator=127.0.0.1:{_free_port()}", "--num_processes=2"]
    copies = [tmp_path / str(i) for i in range(2)]
    for copy in copies:
        shutil.copytree(saved_run.workdir, copy)
    shutil.copytree(copies[1] / "checkpoints" / "3", copies[1] / "checkpoints" / "5")
    processes = [
        _start(copies[i], None, *flags, f"--process_id={i}", module="eval") for i in range(2)
    ]
    (out, errors, code), (silent, others, also) = _finish(*processes)
    assert (code, also) == (0, 0), errors + others
    assert "checkpoint 3" in out
    assert "checkpoint" not in silent
    (result,) = (json.loads(f.read_text()) for f in (copies[0] / "eval").iterdir())
    assert (result["step"], result["count"]) == (3, 360)
    assert not (copies[1] / "eval").exists()


@pytest.mark.full
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4)])
def test_another_number_of_processes_continues_a_checkpoint(
    undisturbed, digits_path, tmp_path, before, after
):
    """On the same samples, as the losses show."""
    run = tmp_path / "run"
    processes = _start_all(before, run, digits_path)
    # Several processes agree to stop some steps later; a single one stops at once.
    begun = "config.json" if before > 1 else "first_steps.jsonl"
    _wait_for(run / begun, processes)
    processes[-1].send_signal(signal.SIGTERM)
    assert [code for _, _, code in _finish(*processes)] == [143] * before
    outputs = _finish(*_start_all(after, run, digits_path))
    assert [code for _, _, code in outputs] == [0] * after, [errors for _, errors, _ in outputs]
    assert "continuing after step" in outputs[0][0]
    steps = [
        [json.loads(x) for x in (workdir / "first_steps.jsonl").read_text().splitlines()]
        for workdir in (undisturbed, run)
    ]
    _assert_same_run(*steps)
    assert len(steps[0]) == 21


@pytest.mark.full
def test_signal_to_one_process_stops_both_and_one_process_continues(
    undisturbed, digits_path, tmp_path
):
    run = tmp_path / "run"
    processes = _start_all(2, run, digits_path)
    _wait_for(run / "config.json", processes)  # the first step is not compiled yet
    processes[1].send_signal(signal.SIGTERM)
    first, second = _finish(*processes)
    assert first[2] == second[2] == 143, first[1] + second[1]
    assert "stopped by signal 15 after step" in first[0]
    ((out, errors, code),) = _finish(_start(run, digits_path, devices=2))
    assert code == 0, errors
    assert "continuing after step" in out
    _assert_same_run(_metrics(undisturbed), _metrics(run))


@pytest.mark.full
def test_different_config_in_one_process_is_reported_by_both(digits_path, tmp_path):
    port = _free_port()
    flags = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    outputs = _finish(
        _start(tmp_path / "run", digits_path, *flags, "--process_id=0"),
        _start(tmp_path / "run", digits_path, *flags, "--process_id=1", "--config.seed=1"),
    )
    for _, errors, code in outputs:
        assert code == 1
        assert "error: config of process 1 differs from that of process 0" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_different_code_in_one_process_is_reported(digits_path, tmp_path):
    """Two clones of the repository, one of them with one more commit."""
    flags = [f"--coordinator=127.0.0.1:{_free_port()}", "--num_processes=2"]
    processes = []
    for i in range(2):
        clone = tmp_path / str(i)
        subprocess.run(["git", "clone", "-q", REPOSITORY, clone], check=True)
        if i:
            who = ("-c", "user.name=test", "-c", "user.email=test@localhost")
            subprocess.run(
                ["git", *who, "commit", "-q", "--allow-empty", "-m", "Change"],
                cwd=clone,
                check=True,
            )
        more = (*flags, f"--process_id={i}")
        processes.append(_start(tmp_path / "run", digits_path, *more, code=clone))
    for _, errors, code in _finish(*processes):
        assert code == 1
        assert "error: git_revision of process 1 differs from that of process 0" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_death_of_one_process_ends_the_other_and_both_continue_exactly(digits_path, tmp_path):
    more = ("--config.epochs=6", "--config.checkpoint.every_epochs=1")
    whole, run = tmp_path / "whole", tmp_path / "run"
    for _, errors, code in _finish(*_start_all(2, whole, digits_path, *more)):
        assert code == 0, errors

    processes = _start_all(2, run, digits_path, *more)
    _wait_for(run / "checkpoints" / "90", processes)
    processes[1].kill()
    began = time.monotonic()
    try:
        assert processes[0].wait(timeout=90) not in (0, 143)
        assert time.monotonic() - began < 60
    finally:
        _finish(*processes)

    outputs = _finish(*_start_all(2, run, digits_path, *more))
    assert [code for _, _, code in outputs] == [0, 0], [errors for _, errors, _ in outputs]
    assert "continuing after step" in outputs[0][0]
    _assert_same_bits(whole, run)
    lines = [
        [{k: v for k, v in x.items() if k not in MEASURED} for x in _metrics(workdir)]
        for workdir in (whole, run)
    ]
    assert lines[0] == lines[1]
