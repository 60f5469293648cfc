"""launch/tpu_vm.sh against a stand-in for gcloud."""

import os
import shlex
import signal
import subprocess
import time

import pytest

TPU = "launch/tpu_vm.sh"
PLACE = ["--name=pod", "--zone=us-west4-a"]
TRAIN = ["--config=configs/resnet50.py", "--workdir=/mnt/nfs/runs/a b"]
RUN = ["run", *PLACE, "--nfs=10.0.0.2:/share", *TRAIN]

MISSING = ("tpu-vm describe", {"code": 1})
READY = ("tpu-vm describe", {"says": "READY\n"})
PREEMPTED = ("tpu-vm describe", {"says": "PREEMPTED\n"})


def training(says: str) -> tuple[str, dict]:
    """Return the reply of worker 0 about its training."""
    return ("echo running", {"says": says})


IDLE, RUNNING = training(""), training("running\n")


def verbs(fakes) -> list[str]:
    """Return the calls of gcloud in short form, without queries."""
    short = []
    for command in fakes.commands("gcloud"):
        assert command[1:4] == ["compute", "tpus", "tpu-vm"]
        assert command[-2:] == ["--zone=us-west4-a", "--quiet"]
        text = " ".join(command)
        if command[4] == "ssh" and "echo running" not in text:
            what = "tail" if "tail -n" in text else "start" if "setsid" in text else "install"
            worker = next(a for a in command if a.startswith("--worker"))
            short.append(f"{what} {worker.split('=')[1]}")
        elif command[4] not in ("ssh", "describe"):
            short.append(command[4])
    return short


FROM_NOTHING = ["create", "scp", "install all", "start all", "tail 0"]


def test_slice_is_created_trained_on_and_deleted(fakes):
    fakes.answer(MISSING, READY, IDLE, training("0\n"))
    run = fakes.run(TPU, *RUN, "--spot", "--type=v5litepod-32")
    assert run.returncode == 0, run.stderr
    assert verbs(fakes) == [*FROM_NOTHING, "delete"]
    create = next(c for c in fakes.commands("gcloud") if "create" in c)
    assert {"--accelerator-type=v5litepod-32", "--spot", "pod"} <= set(create)
    assert any(a.startswith("--version=") for a in create)


def test_existing_slice_is_used_and_kept_on_request(fakes):
    fakes.answer(READY, IDLE, training("0\n"))
    assert fakes.run(TPU, *RUN, "--keep").returncode == 0
    assert verbs(fakes) == ["scp", "install all", "start all", "tail 0"]


def test_running_training_is_only_watched(fakes):
    fakes.answer(READY, RUNNING, training("0\n"))
    assert fakes.run(TPU, *RUN, "--keep").returncode == 0
    assert verbs(fakes) == ["tail 0"]


def test_slice_is_recreated_after_preemption(fakes):
    lost = ("tail -n", {"code": 255})
    fakes.answer(MISSING, READY, IDLE, lost, training(""), PREEMPTED, MISSING, READY, IDLE,
                 training("0\n"))  # fmt: skip
    run = fakes.run(TPU, *RUN)
    assert run.returncode == 0, run.stderr
    assert verbs(fakes) == [*FROM_NOTHING, "delete", *FROM_NOTHING, "delete"]
    assert "was preempted" in run.stderr


def test_lost_connection_is_restored(fakes):
    lost = ("tail -n", {"code": 255})
    fakes.answer(READY, IDLE, lost, RUNNING, READY, RUNNING, training("0\n"))
    assert fakes.run(TPU, *RUN, "--keep").returncode == 0
    assert verbs(fakes) == ["scp", "install all", "start all", "tail 0", "tail 0"]


def test_restart_after_a_stop_by_the_system(fakes):
    fakes.answer(READY, IDLE, training("143\n"), READY, training("143\n"), training("0\n"))
    assert fakes.run(TPU, *RUN, "--keep").returncode == 0
    assert verbs(fakes) == ["scp", "install all", "start all", "tail 0"] * 2


@pytest.mark.parametrize("code", [1, 130])
def test_errors_end_without_a_restart_and_name_what_costs(fakes, code):
    fakes.answer(READY, IDLE, training(f"{code}\n"))
    run = fakes.run(TPU, *RUN)
    assert run.returncode == code
    assert verbs(fakes) == ["scp", "install all", "start all", "tail 0"]
    assert "costs: launch/tpu_vm.sh delete --name=pod --zone=us-west4-a" in run.stderr


def test_missing_capacity_is_waited_for_without_counting(fakes):
    full = ("tpu-vm create", {"says": "There is no more capacity in the zone\n", "code": 1})
    fakes.answer(*[MISSING] * 8, *[full] * 7, READY, IDLE, training("0\n"))
    run = fakes.run(TPU, *RUN)
    assert run.returncode == 0, run.stderr
    assert verbs(fakes) == ["create"] * 7 + [*FROM_NOTHING, "delete"]


def test_repeated_errors_end_the_run(fakes):
    wrong = ("tpu-vm create", {"says": "permission denied\n", "code": 1})
    fakes.answer(*[MISSING] * 9, *[wrong] * 9)
    run = fakes.run(TPU, *RUN)
    assert run.returncode == 1
    assert "could not create pod; giving up" in run.stderr
    assert verbs(fakes) == ["create"] * 6


def train_script(fakes) -> str:
    """Return the script that is sent to each worker as imagenet_jax_train.sh."""
    prefix = "# imagenet_jax_train.sh: "
    lines = fakes.run(TPU, *RUN, "--dry_run").stdout.splitlines()
    return "\n".join(line[len(prefix) :] for line in lines if line.startswith(prefix)) + "\n"


def test_worker_runs_the_training_command(fakes):
    (command,) = [line for line in train_script(fakes).splitlines() if "imagenet_jax.main" in line]
    words = shlex.split(command.split(" >> ")[0])
    assert words == [".venv/bin/python", "-u", "-m", "imagenet_jax.main", *TRAIN]


@pytest.mark.parametrize(("stop", "code"), [(True, "130"), (False, "143")])
def test_worker_script_runs_on_a_machine(fakes, tmp_path, stop, code):
    """Runs the commands that are sent over ssh on this machine, in another home."""
    fakes.answer(READY, IDLE, training("0\n"))
    assert fakes.run(TPU, *RUN, "--keep").returncode == 0
    assert fakes.run(TPU, "stop", *PLACE).returncode == 0
    sent = [c[-3].removeprefix("--command=") for c in fakes.commands("gcloud") if "ssh" in c]
    ask, _install, start, watch, _ask, stop_command = sent

    home = tmp_path / "home"
    (home / "imagenet_jax/.venv/bin").mkdir(parents=True)
    (home / "imagenet_jax_train.sh").write_text(train_script(fakes))
    python = home / "imagenet_jax/.venv/bin/python"
    python.symlink_to(fakes.folder / "python-of-test")
    fakes.answer(*[("unused", {})] * 8, ("imagenet_jax.main", {"until_signal": 0.0}))

    def on_worker(command: str) -> str:
        run = subprocess.run(
            ["bash", "-c", command], env=fakes.environment(HOME=str(home)), cwd=home,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=30,
        )  # fmt: skip
        return run.stdout.strip()

    assert on_worker(ask) == ""
    on_worker(start)
    end = time.monotonic() + 20
    while not (fakes.folder / "waiting-8").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    assert on_worker(ask) == "running"
    (trainer,) = fakes.calls("python")
    if stop:
        on_worker(stop_command)
    else:
        os.kill(trainer["pid"], signal.SIGTERM)
    on_worker(watch)  # ends with the training
    while not (said := on_worker(ask)).isdecimal():
        assert time.monotonic() < end
    assert said == code


def test_dry_run_prints_every_call_without_making_it(fakes):
    run = fakes.run(TPU, *RUN, "--dry_run")
    assert run.returncode == 0, run.stderr
    assert not fakes.commands()
    calls = [line for line in run.stdout.splitlines() if line.startswith("gcloud ")]
    assert [shlex.split(call)[4] for call in calls[:2]] == ["create", "scp"]
    assert shlex.split(calls[-1])[4:6] == ["delete", "pod"]


@pytest.mark.parametrize(
    ("action", "verb", "worker"), [("watch", "tail", "0"), ("stop", "kill -TERM", "all")]
)
def test_watch_and_stop_call_the_workers(fakes, action, verb, worker):
    assert fakes.run(TPU, action, *PLACE).returncode == 0
    (command,) = fakes.commands("gcloud")
    assert f"--worker={worker}" in command
    assert any(verb in argument for argument in command)


def test_delete_calls_gcloud(fakes):
    assert fakes.run(TPU, "delete", *PLACE, "--project=lab").returncode == 0
    (command,) = fakes.commands("gcloud")
    assert command[4:] == ["delete", "pod", "--project=lab", "--zone=us-west4-a", "--quiet"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "run, watch, stop or delete"),
        (["start", *PLACE], "run, watch, stop or delete"),
        (["run", "--zone=z", *TRAIN], "--name="),
        (["run", "--name=pod", *TRAIN], "--zone=ZONE"),
        (["run", *PLACE, *TRAIN], "--nfs=HOST:/DIR"),
        (["run", *PLACE, "--nfs=a:/b", "--workdir=runs/a"], "below /mnt/nfs"),
    ],
)
def test_invalid_flags_are_refused_before_anything_is_created(fakes, arguments, said):
    run = fakes.run(TPU, *arguments)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert said in run.stderr
    assert not fakes.commands()
