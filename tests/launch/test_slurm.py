"""launch/slurm.sbatch against stand-ins for sbatch, srun, scontrol and scancel."""

import os
import signal
import time
from pathlib import Path

import pytest

SLURM = "launch/slurm.sbatch"
ARGUMENTS = ["--config=configs/resnet50.py", "--workdir=/shared/a b"]
TRAIN = ["python-of-test", "-m", "imagenet_jax.main", *ARGUMENTS]


def in_job(**more: str) -> dict[str, str]:
    return {"SLURM_JOB_ID": "77", "SLURM_SUBMIT_DIR": ".", "SLURM_CPUS_PER_TASK": "16"} | more


def requeued(fakes) -> bool:
    commands = fakes.commands("scontrol")
    assert commands in ([], [["scontrol", "requeue", "77"]])
    return bool(commands)


def test_script_submits_itself_outside_a_job(fakes):
    assert fakes.run(SLURM, *ARGUMENTS).returncode == 0
    assert fakes.commands() == [["sbatch", SLURM, *ARGUMENTS]]


def test_srun_starts_the_training_command_on_every_node(fakes):
    run = fakes.run(SLURM, *ARGUMENTS, **in_job())
    assert run.returncode == 0, run.stderr
    (command,) = fakes.commands()
    assert command[0] == "srun"
    assert command[-len(TRAIN) :] == TRAIN
    assert "--cpus-per-task=16" in command  # srun does not take it from sbatch


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [
        (0, 0, False),
        (1, 0, False),
        (2, 0, False),
        (130, 0, False),
        (143, 0, True),
        (143, 99, True),
        (137, 0, True),
        (134, 4, True),
        (134, 5, False),
    ],
)
def test_exit_codes_that_requeue_the_job(fakes, code, restarts, again):
    fakes.answer(("srun", {"code": code}))
    run = fakes.run(SLURM, *ARGUMENTS, **in_job(SLURM_RESTART_COUNT=str(restarts)))
    assert requeued(fakes) == again, run.stderr
    assert run.returncode == (0 if again else code)


def started(fakes, **more):
    process = fakes.start(SLURM, *ARGUMENTS, **in_job(**more))
    end = time.monotonic() + 20
    while not (fakes.folder / "waiting-0").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    return process


def test_tasks_save_before_the_time_limit(fakes):
    fakes.answer(("srun", {"until_signal": 0.0}))
    process = started(fakes)
    process.send_signal(signal.SIGUSR1)
    end = time.monotonic() + 20
    while not fakes.commands("scancel"):
        assert time.monotonic() < end
        time.sleep(0.02)
    # Without --full and --batch: to the steps, not to the batch script.
    assert fakes.commands("scancel") == [["scancel", "--signal=TERM", "77"]]
    assert process.poll() is None, "it waits for the tasks to save"
    kill_srun(fakes)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert requeued(fakes)


def test_cancelled_job_is_not_requeued(fakes):
    fakes.answer(("srun", {"until_signal": 0.2}))
    process = started(fakes)
    process.terminate()  # what scancel does to the batch script
    kill_srun(fakes)  # and to the tasks
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert not requeued(fakes)


def kill_srun(fakes):
    """Send SIGTERM to the stand-in for srun, as the tasks receive it."""

    (pid,) = [int(call["pid"]) for call in fakes.calls("srun")]
    os.kill(pid, signal.SIGTERM)


def test_dry_run_submits_nothing(fakes):
    run = fakes.run(SLURM, "--dry_run", *ARGUMENTS)
    assert run.returncode == 0
    assert run.stdout.startswith("sbatch launch/slurm.sbatch --config=")
    assert "srun " in run.stdout
    assert "python-of-test -m imagenet_jax.main" in run.stdout
    assert not fakes.commands()


def test_directives_precede_the_first_command():
    """sbatch ignores #SBATCH lines after the first line that is not a comment or blank."""

    lines = (Path(__file__).parents[2] / SLURM).read_text().splitlines()
    head = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [line.split()[1] for line in lines if line.startswith("#SBATCH")]
    assert all(not line.startswith("#SBATCH") for line in lines[head:])
    names = {directive.split("=")[0] for directive in directives}
    assert {"--nodes", "--ntasks-per-node", "--gpus-per-node", "--requeue", "--signal"} <= names
    assert "--ntasks-per-node=1" in directives
    assert "--signal=B:USR1@300" in directives
