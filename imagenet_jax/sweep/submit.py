"""Hand the cells of a sweep to SLURM, as one array, or to SkyPilot, as a managed job each."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from imagenet_jax.errors import UserError
from imagenet_jax.files import read_json, write_atomically, write_json
from imagenet_jax.runtime.lock import Lock
from imagenet_jax.sweep import folder
from imagenet_jax.sweep.plan import Cell, Plan
from imagenet_jax.sweep.run import command

_ROOT = Path(__file__).parents[2]
_BUCKET = "/bucket"  # where launch/skypilot.yaml mounts it


def submit(
    plan: Plan,
    out: Path,
    scheduler: str | None,
    flags: str,
    *,
    jobs: int | None,
    retry_failed: bool,
    dry_run: bool,
) -> int:
    """Submit every cell that is neither finished, nor running, nor submitted before; returns 0.

    A failed cell is submitted again with `retry_failed`. A cell that left SLURM's queue without an
    end is submitted again; of SkyPilot's only `retry_failed` submits one twice.

    Args:
      scheduler: "slurm" or "skypilot".
      flags: of the user for sbatch or `sky jobs launch`.
      jobs: cells of a SLURM array that may run at the same time; None: all.

    Raises UserError as `run_here`, and where the scheduler refuses.
    """
    if not scheduler:
        raise UserError("--launch_flags is for --launch=slurm or --launch=skypilot")
    if not (_ROOT / "launch").is_dir():
        raise UserError("--launch needs launch/ of a checkout; this package is installed without")
    if scheduler == "skypilot" and jobs:
        raise UserError("--jobs is not for SkyPilot, which runs what fits")
    if dry_run:
        _submit(folder.joined(out, plan)[0].cells, plan, out, scheduler, flags, jobs, True)
        return 0
    with Lock(out, does="runs a sweep", flag="--out"):
        wanted, recorded = folder.joined(out, plan)
        before = _read_submitted(out)
        queued = _slurm_queue() if any(j["by"] == "slurm" for j in before.values()) else set()
        states = folder.states_of(out, wanted.cells)
        cells = []
        for cell in wanted.cells:
            kind, job = states[cell.name].kind, before.get(cell.name)
            waits = job and (job["id"] in queued if job["by"] == "slurm" else not retry_failed)
            if kind in (folder.FINISHED, folder.RUNNING) or waits:
                continue
            if kind != folder.FAILED or retry_failed:
                cells.append(cell)
        folder.write_plan(out, recorded)
        _submit(tuple(cells), wanted, out, scheduler, flags, jobs, False)
    print(f"{len(cells)} of {len(wanted.cells)} cells submitted; --table shows how far they are")
    return 0


def _submit(
    cells: tuple[Cell, ...],
    plan: Plan,
    out: Path,
    scheduler: str,
    flags: str,
    at_once: int | None,
    dry_run: bool,
) -> None:
    if not cells:
        return
    more = shlex.split(flags)
    if scheduler == "skypilot":
        for cell in cells:
            call = _sky_call(plan, cell, out, more)
            if dry_run:
                print(shlex.join(call))
                continue
            _call(call, cwd=_ROOT)
            _record(out, {cell.name: {"by": "skypilot", "id": ""}})
        if not dry_run:
            print(f"they write to {out.name}/ in the bucket; copy it to {out} for --table")
        return
    listed = next(p for i in range(1, 10**6) if not (p := out / f"array-{i}.tsv").exists())
    limit = f"%{at_once}" if at_once else ""
    call = [
        "sbatch", "--parsable", f"--job-name={out.name}", f"--array=0-{len(cells) - 1}{limit}",
        f"--output={out}/slurm-%A_%a.out", *more, str(_ROOT / "launch/slurm.sbatch"),
        f"--cells={listed}",
    ]  # fmt: skip
    lines = [_words(command(plan, cell, str(out / cell.name))) for cell in cells]
    if dry_run:
        print(shlex.join(call), "# with the lines", *lines, sep="\n")
        return
    # A file of its own: the tasks of an earlier array read theirs whenever they start.
    write_atomically(listed, "\n".join(lines) + "\n")
    python = os.environ.get("PYTHON", sys.executable)
    said = _call(call, environment={"PYTHON": python}).split(";")[0].strip()
    _record(out, {c.name: {"by": "slurm", "id": f"{said}_{i}"} for i, c in enumerate(cells)})


def _words(arguments: list[str]) -> str:
    """One line of a --cells file: arguments with tabs between."""
    for argument in arguments:
        if "\t" in argument or "\n" in argument:
            raise UserError(
                f"{argument!r} has a tab or a line break, which SLURM's list cannot hold"
            )
    return "\t".join(arguments)


def _sky_call(plan: Plan, cell: Cell, out: Path, flags: list[str]) -> list[str]:
    path, _, argument = plan.spec.partition(":")
    file = Path(path).resolve()
    if not file.is_relative_to(_ROOT):
        raise UserError(f"--config={plan.spec} is not below {_ROOT}, which SkyPilot sends along")
    workdir = f"{_BUCKET}/{out.name}/{cell.name}"
    spec = str(file.relative_to(_ROOT)) + (f":{argument}" if argument else "")
    arguments = [f"--config={spec}", *command(plan, cell, workdir)[1:]]
    for word in arguments:
        if re.search(r"[\s*?\[]", word):  # skypilot.yaml lets the shell split and expand them
            raise UserError(
                f"{word!r} has a space or one of *?[, which launch/skypilot.yaml splits"
            )
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{out.name}-{cell.name}").strip("-")
    return [
        "sky", "jobs", "launch", "--yes", "--detach-run", f"--name={name}",
        "--env", f"ARGUMENTS={' '.join(arguments)}", *flags, "launch/skypilot.yaml",
    ]  # fmt: skip


def _call(
    call: list[str], cwd: Path | None = None, environment: dict[str, str] | None = None
) -> str:
    """Standard output of a scheduler's command; UserError where it fails."""
    try:
        done = subprocess.run(
            call, cwd=cwd, env=os.environ | (environment or {}), capture_output=True, text=True
        )
    except FileNotFoundError:
        raise UserError(f"{call[0]} is not installed here; launch/README.md says what is") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(f"{call[0]} ends with {done.returncode}: {lines[-1] if lines else ''}")
    return done.stdout


def _slurm_queue() -> set[str]:
    """JOB_INDEX of this user's array tasks that wait or run."""
    return set(_call(["squeue", "--me", "--noheader", "--array", "--format=%i"]).split())


def _read_submitted(out: Path) -> dict[str, dict[str, str]]:
    try:
        return read_json(out / "submitted.json")
    except FileNotFoundError:
        return {}
    except ValueError as e:
        raise UserError(f"{out / 'submitted.json'} is damaged ({e}); remove it") from e


def _record(out: Path, jobs: dict[str, dict[str, str]]) -> None:
    """Add jobs, as soon as they are submitted, to submitted.json."""
    known = _read_submitted(out) | jobs
    write_json(out / "submitted.json", known)
