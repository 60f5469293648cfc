"""Submits the trials of a sweep to SLURM, as a job array, or to SkyPilot, as a job for each."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from imagenet_jax.errors import UserError
from imagenet_jax.files import read_json, write_atomically, write_json
from imagenet_jax.runtime.lock import Lock
from imagenet_jax.sweep import folder
from imagenet_jax.sweep.plan import Plan, Trial
from imagenet_jax.sweep.run import trial_flags

_ROOT = Path(__file__).parents[2]
_BUCKET = "/bucket"  # where launch/skypilot.yaml mounts the bucket


def submit(plan: Plan, out: Path, args: argparse.Namespace) -> int:
    """Submit every trial that is not finished, running, or already submitted; return 0.

    `args.jobs` limits the number of tasks of a SLURM array that run at the same time. Failed trials
    are submitted again with `args.retry_failed`. A trial that left SLURM's queue unfinished is
    submitted again. SkyPilot's queue is not read, so such trials need `args.retry_failed` there.

    Raises UserError like `run_here`, and if the scheduler rejects the jobs.
    """
    if not args.launch:
        raise UserError("--launch_flags needs --launch=slurm or --launch=skypilot")
    if not (_ROOT / "launch").is_dir():
        raise UserError("--launch needs a checkout: the installed package has no launch/")
    if args.launch == "skypilot" and args.jobs:
        raise UserError("--jobs does not apply to SkyPilot, which starts all jobs it has room for")
    submit_trials = _submit_slurm if args.launch == "slurm" else _submit_skypilot
    if args.dry_run:
        wanted = folder.extend_plan(out, plan)[0]
        submit_trials(wanted, wanted.trials, out, args)
        return 0
    with Lock(out, does="runs a sweep", flag="--out"):
        wanted, recorded = folder.extend_plan(out, plan)
        trials = _select(wanted, out, args.retry_failed)
        folder.write_plan(out, recorded)
        if trials:
            submit_trials(wanted, trials, out, args)
    print(f"{len(trials)} of {len(wanted.trials)} trials submitted; --table shows their progress")
    return 0


def _select(plan: Plan, out: Path, retry_failed: bool) -> tuple[Trial, ...]:
    """Return the trials to submit."""
    states = folder.read_states(out, plan.trials)
    submitted = _read_submitted(out)
    queued = set()
    if any(job["by"] == "slurm" for job in submitted.values()):
        queued = set(_call("squeue", "--me", "--noheader", "--array", "--format=%i").split())

    def is_due(trial: Trial) -> bool:
        kind, job = states[trial.name].kind, submitted.get(trial.name)
        waits = job and (job["id"] in queued if job["by"] == "slurm" else not retry_failed)
        done = (folder.FINISHED, folder.RUNNING, *(() if retry_failed else (folder.FAILED,)))
        return not waits and kind not in done

    return tuple(filter(is_due, plan.trials))


def _submit_slurm(plan: Plan, trials: Sequence[Trial], out: Path, args: argparse.Namespace) -> None:
    """Submit one job array. Task I reads its arguments from line I of a file."""
    # Use a new file for each array, because tasks of earlier arrays read theirs when they start.
    path = next(p for i in range(1, 10**6) if not (p := out / f"array-{i}.tsv").exists())
    limit = f"%{args.jobs}" if args.jobs else ""
    call = [
        "sbatch", "--parsable", f"--job-name={out.name}", f"--array=0-{len(trials) - 1}{limit}",
        f"--output={out}/slurm-%A_%a.out", *shlex.split(args.launch_flags or ""),
        str(_ROOT / "launch/slurm.sbatch"), f"--cells={path}",
    ]  # fmt: skip
    lines = []
    for trial in trials:
        flags = trial_flags(plan, trial, str(out / trial.name))
        for flag in flags:
            if "\t" in flag or "\n" in flag:
                raise UserError(f"{flag!r} has a tab or a line break, which a .tsv cannot hold")
        lines.append("\t".join(flags))
    if args.dry_run:
        print(shlex.join(call), f"# with {path.name}:", *lines, sep="\n")
        return
    write_atomically(path, "\n".join(lines) + "\n")
    job = _call(*call).split(";")[0].strip()
    _record(out, {t.name: {"by": "slurm", "id": f"{job}_{i}"} for i, t in enumerate(trials)})


def _submit_skypilot(
    plan: Plan, trials: Sequence[Trial], out: Path, args: argparse.Namespace
) -> None:
    """Submit a managed job for each trial."""
    path, _, argument = plan.spec.partition(":")
    file = Path(path).resolve()
    if not file.is_relative_to(_ROOT):
        raise UserError(f"--config={plan.spec} is not below {_ROOT}, which SkyPilot uploads")
    spec = str(file.relative_to(_ROOT)) + (f":{argument}" if argument else "")
    for trial in trials:
        flags = trial_flags(plan, trial, f"{_BUCKET}/{out.name}/{trial.name}")
        flags[0] = f"--config={spec}"
        for flag in flags:
            if re.search(r"[\s*?\[]", flag):  # the shell in skypilot.yaml would split or expand it
                raise UserError(
                    f"{flag!r} has a space or one of *?[, which launch/skypilot.yaml would split"
                )
        name = re.sub(r"[^A-Za-z0-9]+", "-", f"{out.name}-{trial.name}").strip("-")
        call = [
            "sky", "jobs", "launch", "--yes", "--detach-run", f"--name={name}",
            "--env", f"ARGUMENTS={' '.join(flags)}", *shlex.split(args.launch_flags or ""),
            "launch/skypilot.yaml",
        ]  # fmt: skip
        if args.dry_run:
            print(shlex.join(call))
        else:
            _call(*call, cwd=_ROOT)
            _record(out, {trial.name: {"by": "skypilot", "id": ""}})
    if not args.dry_run:
        print(f"the trials write to {out.name}/ in the bucket; copy it to {out} for --table")


def _call(*call: str, cwd: Path | None = None) -> str:
    """Run a scheduler's command and return its output. Raises UserError if it fails."""
    environment = {"PYTHON": sys.executable} | os.environ  # for launch/slurm.sbatch
    try:
        done = subprocess.run(call, cwd=cwd, env=environment, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(f"{call[0]} is not installed here; see docs/launch.md") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(f"{call[0]} failed with exit code {done.returncode}: {''.join(lines[-1:])}")
    return done.stdout


def _read_submitted(out: Path) -> dict[str, dict[str, str]]:
    try:
        return read_json(out / "submitted.json")
    except FileNotFoundError:
        return {}
    except ValueError as e:
        raise UserError(f"{out / 'submitted.json'} is damaged ({e}); remove it") from e


def _record(out: Path, jobs: dict[str, dict[str, str]]) -> None:
    """Add jobs to submitted.json."""
    write_json(out / "submitted.json", _read_submitted(out) | jobs)
