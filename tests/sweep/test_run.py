"""Sweeps that train: failed, killed, stopped, continued, two trials at a time."""

import contextlib
import json
import os
import signal
import time

import pytest
from conftest import FASTER_COMPILATION, REPOSITORY

from imagenet_jax.sweep import __main__ as sweep
from imagenet_jax.sweep import folder

SETTINGS = (
    "batch_size=48", "epochs=0.3", "model.width=0.0625", "augment.image_size=16",
    "eval.image_size=16", "eval.resize=16", "eval.batch_size=120", "log.every_steps=2",
    "log.tensorboard=false", "data.threads=1", "optim.warmup_epochs=0", "ema.decay=0",
    "eval.every_epochs=0", "checkpoint.every_epochs=0",
)  # fmt: skip
LONG = ("--config.epochs=400", "--config.checkpoint.every_epochs=0.1", "--config.data.threads=1")


@pytest.fixture
def arguments(digits_path, tmp_path, monkeypatch):
    """arguments(*more): a sweep in tmp_path/sweep whose trials have 9 steps."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("XLA_FLAGS", FASTER_COMPILATION)  # one device

    def make(*more):
        fields = [f"--config.{setting}" for setting in (f"data.path={digits_path}", *SETTINGS)]
        return ["--config=configs/quickstart.py", *fields, f"--out={tmp_path / 'sweep'}", *more]

    yield make
    # If a test has failed, the trials of its killed sweep may still be running.
    for mark in (tmp_path / "sweep").glob("*/running.json"):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.kill(json.loads(mark.read_text())["pid"], signal.SIGKILL)


def wait_for(condition, process, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def log(out, trial):
    return (out / trial / "log.txt").read_text()


def recorded(out, trial):
    """Return the recorded steps of a trial; false if there are none."""
    path = out / trial / "metrics.jsonl"
    return path.exists() and path.read_text()


@pytest.mark.full
def test_other_trials_continue_after_a_failure_which_is_retried_on_request(
    arguments, tmp_path, call_command
):
    out, good, bad = tmp_path / "sweep", "num_classes=10,seed=0", "num_classes=7,seed=0"
    args = arguments("--grid=model.num_classes=7,10", "--jobs=2")
    code, printed, err = call_command(sweep, args)
    assert code == 1
    assert f"finished    {good}" in printed and f"failed      {bad}" in printed
    assert "has 10 classes" in err and "--retry_failed" in err
    steps = [json.loads(line)["step"] for line in (out / good / "metrics.jsonl").open()]
    assert max(steps) == 9

    code, printed, _ = call_command(sweep, args)  # nothing is left to run
    assert code == 1
    assert "running" not in printed
    code, printed, _ = call_command(sweep, [*args, "--retry_failed"])
    assert code == 1
    assert log(out, good).count("finished: 9 steps") == 1
    assert log(out, bad).count("has 10 classes") == 2

    code, table, _ = call_command(sweep, ["--table", f"--out={out}", "--format=csv"])
    assert code == 0
    rows = {line.split(",")[0]: line.split(",") for line in table.splitlines()}
    assert rows["num_classes=7"][3:6] == ["1", "0", "1"]  # runs, finished, failed
    accuracy = next(
        line["top1"] for line in map(json.loads, (out / good / "metrics.jsonl").open())
        if line["split"] == "validation"
    )  # fmt: skip
    assert float(rows["num_classes=10"][6]) == accuracy
    assert rows["num_classes=10"][7] == ""  # one seed has no deviation


@pytest.mark.slow
def test_continued_sweep_repeats_nothing_after_a_kill(
    arguments, tmp_path, run_module, call_command, fails
):
    """The trial that a killed sweep leaves running is waited for, not started again."""
    out, trials = tmp_path / "sweep", [f"base,seed={seed}" for seed in (0, 1)]
    args = arguments("--seeds=2")
    process = run_module("imagenet_jax.sweep", *args)
    wait_for(lambda: (out / trials[1] / "running.json").exists(), process)
    fails(sweep, args, "runs a sweep", f"process {process.pid}", "--out")
    process.kill()
    process.wait()
    code, printed, _ = call_command(sweep, args)
    assert code == 0, printed
    assert printed.count("finished") >= 2
    for trial in trials:
        assert log(out, trial).count("finished: 9 steps") == 1
        assert log(out, trial).count("parameters; ") == 1  # started once


@pytest.mark.full
def test_sweep_killed_with_its_trial_continues_only_that_trial(
    arguments, tmp_path, run_module, call_command
):
    out, trials = tmp_path / "sweep", [f"base,seed={seed}" for seed in (0, 1)]
    args = arguments("--seeds=2")
    process = run_module("imagenet_jax.sweep", *args)
    wait_for(lambda: recorded(out, trials[1]), process)
    process.kill()
    process.wait()
    mark = json.loads((out / trials[1] / "running.json").read_text())
    os.kill(mark["pid"], signal.SIGKILL)
    code, printed, _ = call_command(sweep, args)
    assert code == 0, printed
    assert log(out, trials[0]).count("parameters; ") == 1
    assert log(out, trials[1]).count("parameters; ") == 2
    histories = [(out / c / "metrics.jsonl").read_text().splitlines() for c in trials]
    assert len(histories[0]) == len(histories[1])


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_signal_is_passed_on_and_the_sweep_continues(arguments, tmp_path, run_module, number):
    out, trials = tmp_path / "sweep", [f"base,seed={seed}" for seed in (0, 1)]
    args = arguments("--seeds=2", "--jobs=2", *LONG)
    for attempt in range(2):
        process = run_module("imagenet_jax.sweep", *args)
        before = [len(recorded(out, c) or "") for c in trials] if attempt else [0, 0]
        wait_for(
            lambda sizes=before: all(
                len(recorded(out, trial) or "") > size + 2000
                for trial, size in zip(trials, sizes, strict=True)
            ),
            process,
        )
        # As from the terminal: to the whole process group of the sweep.
        process.send_signal(number)
        printed, errors = process.communicate(timeout=300)
        assert process.returncode == 128 + number, errors
        assert "the same command continues" in printed
    for trial in trials:
        assert log(out, trial).count(f"stopped by signal {number}") == 2
        assert "continuing after step" in log(out, trial)
        assert not (out / trial / "running.json").exists()
        assert not (out / trial / "failed.json").exists()


@pytest.mark.full
def test_concurrent_trials_have_separate_cores(arguments, tmp_path, run_module):
    """The affinity that the kernel reports for the processes while they train."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core")
    out = tmp_path / "sweep"
    process = run_module("imagenet_jax.sweep", *arguments("--seeds=2", "--jobs=2", *LONG))
    marks = [out / f"base,seed={seed}" / "running.json" for seed in (0, 1)]
    wait_for(lambda: all(mark.exists() for mark in marks), process)
    core_sets = [os.sched_getaffinity(json.loads(mark.read_text())["pid"]) for mark in marks]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert not core_sets[0] & core_sets[1]
    assert sorted(core_sets[0] | core_sets[1]) == cores


def test_workdir_of_another_config_is_refused(arguments, tmp_path, fails, saved_run):
    out = tmp_path / "sweep"
    out.mkdir()
    (out / "base,seed=0").symlink_to(saved_run.workdir)
    fails(sweep, arguments(), "trained with another config", "epochs", "base,seed=0")
    assert not (out / "sweep.json").exists()


def test_more_jobs_than_cores_are_refused(arguments, tmp_path, fails):
    jobs = len(os.sched_getaffinity(0)) + 1
    fails(sweep, arguments(f"--jobs={jobs}"), f"--jobs={jobs}", "core")
    fails(sweep, arguments("--jobs=0"), "--jobs=0")
    assert not (tmp_path / "sweep").exists()


def test_state_is_read_from_the_files_of_a_run(saved_run, tmp_path):
    """A finished run, and the same run without files that a killed one may lack."""
    from imagenet_jax.sweep.plan import Setting, Trial

    setting = Setting("c", (), saved_run.config)
    trial = Trial("c,seed=0", setting, 0, saved_run.config)
    workdir = tmp_path / trial.name
    assert folder.read_state(tmp_path, trial).kind == folder.NOT_STARTED
    workdir.mkdir()
    (workdir / "config.json").write_text((saved_run.workdir / "config.json").read_text())
    assert folder.read_state(tmp_path, trial).kind == folder.UNFINISHED
    # 1,437 digits in batches of 48 for a quarter of an epoch: 7.48 steps, so 8.
    per_epoch = 1437 / 48
    lines = [{"step": s, "split": "train", "epoch": s / per_epoch} for s in (2, 4, 6, 8)]
    last = {"step": 8, "split": "validation", "weights": "ema", "top1": 0.5}
    metrics = workdir / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    state = folder.read_state(tmp_path, trial)
    assert (state.kind, state.step, state.total) == (folder.UNFINISHED, 8, 8)
    folder.mark_failed(workdir, -9, "killed by SIGKILL")
    state = folder.read_state(tmp_path, trial)
    assert state.kind == folder.FAILED and "SIGKILL" in state.reason
    with metrics.open("a") as file:
        file.write(json.dumps(last) + '\n{"step": 8, "spl')
    assert folder.read_state(tmp_path, trial).result == last
    (workdir / "checkpoints" / "6").mkdir(parents=True)  # killed while it saved step 8
    assert folder.read_state(tmp_path, trial).kind == folder.FAILED
    (workdir / "checkpoints" / "8").mkdir()
    assert folder.read_state(tmp_path, trial).kind == folder.FINISHED
