"""launch/local.sh against a stand-in for python."""

import os
import signal
import time

import pytest

LOCAL = "launch/local.sh"
TRAIN = ["python-of-test", "-m", "imagenet_jax.main"]
ARGUMENTS = ["--config=configs/resnet50.py", "--workdir=runs/a b", "--config.seed=1"]


def wait_for(path, seconds=20.0):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not appear"
        time.sleep(0.02)


def test_command_is_the_training_command(fakes):
    run = fakes.run(LOCAL, *ARGUMENTS)
    assert run.returncode == 0, run.stderr
    assert fakes.commands() == [[*TRAIN, *ARGUMENTS]]


@pytest.mark.parametrize("code", [1, 2, 130])
def test_errors_are_returned_without_a_restart(fakes, code):
    fakes.answer(("main", {"code": code}))
    assert fakes.run(LOCAL, *ARGUMENTS).returncode == code
    assert len(fakes.commands()) == 1


def test_restart_after_a_stop_by_the_system(fakes):
    fakes.answer(*[("main", {"code": 143})] * 5)
    run = fakes.run(LOCAL, *ARGUMENTS)
    assert run.returncode == 0
    assert fakes.commands() == [[*TRAIN, *ARGUMENTS]] * 6
    assert run.stderr.count("continuing from the last checkpoint") == 5


def test_restarts_after_crashes_are_limited(fakes):
    fakes.answer(*[("main", {"code": 134})] * 9)
    run = fakes.run(LOCAL, "--restarts=2", *ARGUMENTS)
    assert run.returncode == 134
    assert len(fakes.commands()) == 3
    assert "giving up after 2 restarts" in run.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_signal_reaches_each_process_once(fakes, number):
    fakes.answer(
        ("--process_id=0", {"until_signal": 0.0}), ("--process_id=1", {"until_signal": 0.5})
    )
    process = fakes.start(LOCAL, "--processes=2", *ARGUMENTS)
    for i in range(2):
        wait_for(fakes.folder / f"waiting-{i}")
    os.killpg(process.pid, number)  # what ctrl-C in a terminal does: the whole group gets it
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number, errors
    # A second signal would have interrupted the save of the slower one.
    assert (fakes.folder / "signals").read_text().split() == [str(int(number))] * 2
    assert len(fakes.commands("python-of-test")) == 2


def test_dead_process_stops_its_peers_and_all_restart(fakes):
    fakes.answer(("--process_id=0", {"until_signal": 0.0}), ("--process_id=1", {"code": 137}))
    run = fakes.run(LOCAL, "--processes=2", *ARGUMENTS)
    assert run.returncode == 0
    assert "exit code 137; continuing" in run.stderr
    starts = fakes.commands("python-of-test")
    assert sorted(argv[-1] for argv in starts) == ["--process_id=0"] * 2 + ["--process_id=1"] * 2


def test_processes_divide_the_gpus(fakes):
    fakes.answer(("nvidia-smi -L", {"says": "".join(f"GPU {i}: H200\n" for i in range(8))}))
    assert fakes.run(LOCAL, "--processes=2", *ARGUMENTS).returncode == 0
    calls = sorted(fakes.calls("python-of-test"), key=lambda call: call["argv"][-1])
    assert [call["env"]["JAX_LOCAL_DEVICE_IDS"] for call in calls] == ["0,1,2,3", "4,5,6,7"]
    coordinators = {call["argv"][-3] for call in calls}
    assert len(coordinators) == 1
    assert coordinators.pop().startswith("--coordinator=127.0.0.1:")
    assert [call["argv"][-2:] for call in calls] == [
        ["--num_processes=2", f"--process_id={i}"] for i in range(2)
    ]


def test_indivisible_gpus_are_refused(fakes):
    fakes.answer(("nvidia-smi -L", {"says": "GPU 0: A\nGPU 1: A\nGPU 2: A\n"}))
    run = fakes.run(LOCAL, "--processes=2", *ARGUMENTS)
    assert run.returncode == 1
    assert "does not divide the 3 GPUs" in run.stderr


def test_dry_run_starts_nothing(fakes):
    run = fakes.run(LOCAL, "--dry_run", "--processes=2", *ARGUMENTS)
    assert run.returncode == 0
    assert "python-of-test -m imagenet_jax.main" in run.stdout
    assert "runs/a\\ b" in run.stdout
    assert not fakes.commands("python-of-test")


def test_third_signal_kills_a_process_that_does_not_respond(fakes):
    fakes.answer(("main", {"until_signal": 60.0}))
    process = fakes.start(LOCAL, *ARGUMENTS)
    wait_for(fakes.folder / "waiting-0")
    for _ in range(3):
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.5)
    process.communicate(timeout=30)
    assert process.returncode == 137
    assert len(fakes.commands("python-of-test")) == 1
