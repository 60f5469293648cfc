"""Sweeps of real trainings: failing, killed, stopped, continued, two at once."""

import contextlib
import json
import os
import signal
import time

import pytest
from conftest import REPOSITORY

from imagenet_jax.sweep import __main__ as door
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
    """arguments(*more): of a sweep of 9 steps a cell, in tmp_path/sweep."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("XLA_FLAGS", "")  # one device

    def make(*more):
        fields = [f"--config.{setting}" for setting in (f"data.path={digits_path}", *SETTINGS)]
        return ["--config=configs/quickstart.py", *fields, f"--out={tmp_path / 'sweep'}", *more]

    yield make
    # Where a test failed, the cells of its killed sweep are still at work.
    for mark in (tmp_path / "sweep").glob("*/running.json"):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.kill(json.loads(mark.read_text())["pid"], signal.SIGKILL)


def wait_for(condition, process, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def log(out, cell):
    return (out / cell / "log.txt").read_text()


def trained(out, cell):
    """Whether a step of the cell is recorded."""
    path = out / cell / "metrics.jsonl"
    return path.exists() and path.read_text()


@pytest.mark.full
def test_a_failed_cell_stops_no_other_and_waits_to_be_asked(arguments, tmp_path, call_door):
    out, good, bad = tmp_path / "sweep", "num_classes=10,seed=0", "num_classes=7,seed=0"
    args = arguments("--grid=model.num_classes=7,10", "--jobs=2")
    code, said, err = call_door(door, args)
    assert code == 1
    assert f"finished    {good}" in said and f"failed      {bad}" in said
    assert "has 10 classes" in err and "--retry_failed" in err
    steps = [json.loads(line)["step"] for line in (out / good / "metrics.jsonl").open()]
    assert max(steps) == 9

    code, said, _ = call_door(door, args)  # nothing is left to do
    assert code == 1
    assert "running" not in said
    code, said, _ = call_door(door, [*args, "--retry_failed"])
    assert code == 1
    assert log(out, good).count("finished: 9 steps") == 1
    assert log(out, bad).count("has 10 classes") == 2

    code, table, _ = call_door(door, ["--table", f"--out={out}", "--format=csv"])
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
def test_a_killed_sweep_is_continued_and_repeats_nothing(
    arguments, tmp_path, run_module, call_door, fails
):
    """The sweep is killed; the cell that it leaves at work is waited for, not started again."""
    out, cells = tmp_path / "sweep", [f"base,seed={seed}" for seed in (0, 1)]
    args = arguments("--seeds=2")
    process = run_module("imagenet_jax.sweep", *args)
    wait_for(lambda: (out / cells[1] / "running.json").exists(), process)
    fails(door, args, "runs a sweep", f"process {process.pid}", "--out")
    process.kill()
    process.wait()
    code, said, _ = call_door(door, args)
    assert code == 0, said
    assert said.count("finished") >= 2
    for cell in cells:
        assert log(out, cell).count("finished: 9 steps") == 1
        assert log(out, cell).count("parameters; ") == 1  # started once


@pytest.mark.full
def test_killed_with_its_cell_it_continues_that_cell_alone(
    arguments, tmp_path, run_module, call_door
):
    out, cells = tmp_path / "sweep", [f"base,seed={seed}" for seed in (0, 1)]
    args = arguments("--seeds=2")
    process = run_module("imagenet_jax.sweep", *args)
    wait_for(lambda: trained(out, cells[1]), process)
    process.kill()
    process.wait()
    mark = json.loads((out / cells[1] / "running.json").read_text())
    os.kill(mark["pid"], signal.SIGKILL)
    code, said, _ = call_door(door, args)
    assert code == 0, said
    assert log(out, cells[0]).count("parameters; ") == 1
    assert log(out, cells[1]).count("parameters; ") == 2
    histories = [(out / c / "metrics.jsonl").read_text().splitlines() for c in cells]
    assert len(histories[0]) == len(histories[1])


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_passes_the_signal_on_and_continues(arguments, tmp_path, run_module, number):
    out, cells = tmp_path / "sweep", [f"base,seed={seed}" for seed in (0, 1)]
    args = arguments("--seeds=2", "--jobs=2", *LONG)
    for attempt in range(2):
        process = run_module("imagenet_jax.sweep", *args)
        before = [len(trained(out, c) or "") for c in cells] if attempt else [0, 0]
        wait_for(
            lambda sizes=before: all(
                len(trained(out, cell) or "") > size + 2000
                for cell, size in zip(cells, sizes, strict=True)
            ),
            process,
        )
        # As from the terminal: to all of the sweep's process group.
        process.send_signal(number)
        said, errors = process.communicate(timeout=300)
        assert process.returncode == 128 + number, errors
        assert "the same command continues" in said
    for cell in cells:
        assert log(out, cell).count(f"stopped by signal {number}") == 2
        assert "continuing after step" in log(out, cell)
        assert not (out / cell / "running.json").exists()
        assert not (out / cell / "failed.json").exists()


@pytest.mark.full
def test_two_at_once_have_cores_of_their_own(arguments, tmp_path, run_module):
    """What the kernel says of the processes, while they train."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core")
    out = tmp_path / "sweep"
    process = run_module("imagenet_jax.sweep", *arguments("--seeds=2", "--jobs=2", *LONG))
    marks = [out / f"base,seed={seed}" / "running.json" for seed in (0, 1)]
    wait_for(lambda: all(mark.exists() for mark in marks), process)
    shares = [os.sched_getaffinity(json.loads(mark.read_text())["pid"]) for mark in marks]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert not shares[0] & shares[1]
    assert sorted(shares[0] | shares[1]) == cores


def test_a_folder_of_another_training_is_refused(arguments, tmp_path, fails, saved_run):
    out = tmp_path / "sweep"
    out.mkdir()
    (out / "base,seed=0").symlink_to(saved_run.workdir)
    fails(door, arguments(), "trained otherwise", "epochs", "base,seed=0")
    assert not (out / "sweep.json").exists()


def test_more_jobs_than_cores_are_refused(arguments, tmp_path, fails):
    jobs = len(os.sched_getaffinity(0)) + 1
    fails(door, arguments(f"--jobs={jobs}"), f"--jobs={jobs}", "core")
    fails(door, arguments("--jobs=0"), "--jobs=0")
    assert not (tmp_path / "sweep").exists()


def test_states_are_read_from_the_runs_files(saved_run, tmp_path):
    """A finished run, and what it is without the parts that a killed one may lack."""
    from imagenet_jax.sweep.plan import Cell, Setting

    cell = Cell("c,seed=0", Setting("c", ()), 0, saved_run.config)
    workdir = tmp_path / cell.name
    assert folder.state_of(tmp_path, cell).kind == folder.NOT_STARTED
    workdir.mkdir()
    (workdir / "config.json").write_text((saved_run.workdir / "config.json").read_text())
    assert folder.state_of(tmp_path, cell).kind == folder.UNFINISHED
    # 1,437 digits in batches of 48 for a quarter of an epoch: 7.48 steps, so 8.
    per_epoch = 1437 / 48
    lines = [{"step": s, "split": "train", "epoch": s / per_epoch} for s in (2, 4, 6, 8)]
    last = {"step": 8, "split": "validation", "weights": "ema", "top1": 0.5}
    metrics = workdir / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    state = folder.state_of(tmp_path, cell)
    assert (state.kind, state.step, state.total) == (folder.UNFINISHED, 8, 8)
    folder.mark_failed(workdir, -9, "killed by SIGKILL")
    state = folder.state_of(tmp_path, cell)
    assert state.kind == folder.FAILED and "SIGKILL" in state.reason
    with metrics.open("a") as file:
        file.write(json.dumps(last) + '\n{"step": 8, "spl')
    assert folder.state_of(tmp_path, cell).result == last
    (workdir / "checkpoints" / "6").mkdir(parents=True)  # killed while it saved step 8
    assert folder.state_of(tmp_path, cell).kind == folder.FAILED
    (workdir / "checkpoints" / "8").mkdir()
    assert folder.state_of(tmp_path, cell).kind == folder.FINISHED
