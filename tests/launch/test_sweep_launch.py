"""Submitting a sweep: the calls of sbatch and sky, and the command that an array task starts."""

import json
import sys

import pytest
from conftest import REPOSITORY

from imagenet_jax.sweep import __main__ as sweep

SLURM = "launch/slurm.sbatch"
BASE = ("--config=configs/quickstart.py", "--grid=ema.decay=0,0.9", "--seeds=2")
NAMES = [f"decay={d},seed={s}" for d in ("0", "0.9") for s in (0, 1)]


@pytest.fixture
def submit(fakes, tmp_path, call_command, monkeypatch):
    """submit(*args): run the command with stand-ins for sbatch, squeue and sky on PATH."""
    monkeypatch.setenv("PATH", fakes.environment()["PATH"])
    monkeypatch.delenv("PYTHON", raising=False)
    monkeypatch.chdir(REPOSITORY)

    def call(*args, name="my sweep"):
        return call_command(sweep, [*BASE, f"--out={tmp_path / name}", *args])

    return call


def array_lines(path):
    return [line.split("\t") for line in path.read_text().splitlines()]


def test_slurm_sweep_is_one_array(submit, fakes, tmp_path):
    fakes.answer(("sbatch", {"says": "4711;cluster\n"}))
    out = tmp_path / "my sweep"
    code, printed, _ = submit("--launch=slurm", "--jobs=3", "--launch_flags=--nodes=1 --account=A")
    assert code == 0
    assert "4 of 4 trials submitted" in printed
    (call,) = fakes.calls("sbatch")
    argv = call["argv"]
    assert "--array=0-3%3" in argv
    assert argv[-4:] == [
        "--nodes=1", "--account=A", f"{REPOSITORY}/{SLURM}", f"--cells={out}/array-1.tsv"
    ]  # fmt: skip
    assert call["env"]["PYTHON"] == sys.executable
    lines = array_lines(out / "array-1.tsv")
    assert [line[1] for line in lines] == [f"--workdir={out}/{name}" for name in NAMES]
    assert lines[3][2:] == ["--config.ema.decay=0.9", "--config.seed=1"]
    assert json.loads((out / "submitted.json").read_text())[NAMES[2]]["id"] == "4711_2"


def test_queued_trials_are_not_submitted_twice(submit, fakes, tmp_path):
    out = tmp_path / "my sweep"
    failed = out / NAMES[3] / "failed.json"
    fakes.answer(
        ("sbatch", {"says": "1\n"}),
        ("squeue", {"says": "1_0\n1_2\n99\n"}),
        ("sbatch", {"says": "2\n"}),
        ("squeue", {"says": "1_0\n1_2\n2_0\n"}),
        ("squeue", {"says": "1_0\n1_2\n2_0\n"}),
        ("sbatch", {"says": "3\n"}),
    )
    submit("--launch=slurm")
    failed.parent.mkdir()
    failed.write_text('{"exit_code": 1, "reason": "SLURM job 1_3"}\n')
    assert "1 of 4 trials submitted" in submit("--launch=slurm")[1]  # 1_1 was cancelled
    assert "0 of 4 trials submitted" in submit("--launch=slurm")[1]
    assert "1 of 4 trials submitted" in submit("--launch=slurm", "--retry_failed")[1]
    assert [len(array_lines(out / f"array-{i}.tsv")) for i in (1, 2, 3)] == [4, 1, 1]
    assert array_lines(out / "array-2.tsv")[0][1] == f"--workdir={out}/{NAMES[1]}"
    assert array_lines(out / "array-3.tsv")[0][1] == f"--workdir={out}/{NAMES[3]}"
    assert len(fakes.calls("sbatch")) == 3


def in_task(index, **more):
    variables = {"SLURM_JOB_ID": "50", "SLURM_ARRAY_JOB_ID": "47", "SLURM_SUBMIT_DIR": "."}
    return variables | {"SLURM_ARRAY_TASK_ID": str(index)} | more


def test_array_task_runs_its_line_and_requeues_only_itself(submit, fakes, tmp_path):
    fakes.answer(("sbatch", {"says": "47\n"}), ("srun", {"code": 143}))
    submit("--launch=slurm")
    cells = tmp_path / "my sweep" / "array-1.tsv"
    run = fakes.run(SLURM, f"--cells={cells}", **in_task(3))
    assert run.returncode == 0, run.stderr
    (srun,) = fakes.commands("srun")
    start = srun.index("imagenet_jax.main")
    assert srun[start - 2 : start] == ["python-of-test", "-m"]
    assert srun[start + 1 :] == array_lines(cells)[3]
    assert fakes.commands("scontrol") == [["scontrol", "requeue", "47_3"]]


@pytest.mark.parametrize(
    ("code", "restarts", "marked"), [(0, 0, False), (1, 0, True), (137, 0, False), (137, 5, True)]
)
def test_array_task_marks_its_trial_as_failed_when_it_gives_up(
    submit, fakes, tmp_path, code, restarts, marked
):
    fakes.answer(("sbatch", {"says": "47\n"}), ("srun", {"code": code}))
    submit("--launch=slurm")
    cells = tmp_path / "my sweep" / "array-1.tsv"
    fakes.run(SLURM, f"--cells={cells}", **in_task(0, SLURM_RESTART_COUNT=str(restarts)))
    mark = tmp_path / "my sweep" / NAMES[0] / "failed.json"
    assert mark.exists() == marked
    if marked:
        assert json.loads(mark.read_text()) == {"exit_code": code, "reason": "SLURM job 47_0"}


def test_skypilot_sweep_is_one_job_per_trial(submit, fakes, tmp_path):
    flags = "--launch_flags=--env BUCKET=mine"
    code, printed, _ = submit("--launch=skypilot", flags, name="sweep")
    assert code == 0
    assert "4 of 4 trials submitted" in printed
    calls = fakes.calls("sky")
    assert len(calls) == 4
    argv = calls[1]["argv"]
    assert argv[:4] == ["sky", "jobs", "launch", "--yes"]
    assert argv[-3:] == ["--env", "BUCKET=mine", "launch/skypilot.yaml"]
    (arguments,) = [a for a in argv if a.startswith("ARGUMENTS=")]
    assert arguments.removeprefix("ARGUMENTS=").split() == [
        "--config=configs/quickstart.py", "--workdir=/bucket/sweep/decay=0,seed=1",
        "--config.ema.decay=0", "--config.seed=1",
    ]  # fmt: skip
    assert "0 of 4 trials submitted" in submit("--launch=skypilot", name="sweep")[1]
    assert (
        "4 of 4 trials submitted" in submit("--launch=skypilot", "--retry_failed", name="sweep")[1]
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--launch=skypilot"], ["has a space", "my sweep"]),
        (["--launch=skypilot", "--jobs=2"], ["--jobs", "SkyPilot"]),
        (["--launch_flags=--nodes=1"], ["--launch_flags", "--launch=slurm"]),
    ],
)
def test_invalid_flags_submit_nothing(submit, fakes, args, words):
    code, _, err = submit(*args)
    assert code == 1
    assert err.startswith("error: ") and len(err.splitlines()) == 1
    assert all(word in err for word in words), err
    assert not fakes.commands()


def test_refusal_by_the_scheduler_is_reported_and_not_recorded(submit, fakes, tmp_path):
    fakes.answer(("sbatch", {"says": "Invalid account\n", "code": 1}))
    code, _, err = submit("--launch=slurm")
    assert code == 1
    assert "sbatch failed with exit code 1: Invalid account" in err
    assert not (tmp_path / "my sweep" / "submitted.json").exists()


@pytest.mark.parametrize("scheduler", ["slurm", "skypilot"])
def test_dry_run_prints_every_call(submit, fakes, tmp_path, scheduler):
    code, printed, _ = submit(f"--launch={scheduler}", "--dry_run", name="sweep")
    assert code == 0
    assert all(f"sweep/{name}" in printed for name in NAMES)
    assert not fakes.commands()
    assert not (tmp_path / "sweep").exists()
