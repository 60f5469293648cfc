"""Run the cells of a sweep on this machine, each in a process of its own."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from imagenet_jax.errors import UserError
from imagenet_jax.runtime.lock import Lock
from imagenet_jax.sweep import folder
from imagenet_jax.sweep.devices import Share, shares
from imagenet_jax.sweep.plan import Cell, Plan
from imagenet_jax.sweep.status import Row, Status

_LOOK_SECONDS = 0.5
_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


@dataclass
class _Job:
    cell: Cell
    process: subprocess.Popen
    share: Share


def command(plan: Plan, cell: Cell, workdir: str) -> list[str]:
    """What trains a cell: the arguments of `python -m imagenet_jax.main`."""
    fields = (*plan.overrides, *cell.setting.overrides, ("seed", str(cell.seed)))
    return [
        f"--config={plan.spec}",
        f"--workdir={workdir}",
        *(f"--config.{name}={text}" for name, text in fields),
    ]


def run_here(plan: Plan, out: Path, *, jobs: int | None, retry_failed: bool, dry_run: bool) -> int:
    """Run every cell that is not finished, `jobs` at once (None: one); returns the exit code.

    0 where all are finished, 1 where one failed, 128 + the signal that stopped the sweep: it is
    passed on, and the cells save. `dry_run` prints the commands, and starts and writes nothing.
    Raises UserError before anything starts: for another sweep in `out`, for one of another base
    config, for a folder where another config trained, for more jobs than devices.
    """
    jobs = 1 if jobs is None else jobs
    free = shares(jobs)
    if dry_run:
        for cell in folder.joined(out, plan)[0].cells:
            print(shlex.join(_train(plan, cell, str(out / cell.name))))
        return 0
    with Lock(out, does="runs a sweep", flag="--out"), _Signals() as signals:
        wanted, recorded = folder.joined(out, plan)
        states = folder.states_of(out, wanted.cells)
        folder.write_plan(out, recorded)
        todo = [
            cell
            for cell in wanted.cells
            if states[cell.name].kind != folder.FINISHED
            and (retry_failed or states[cell.name].kind != folder.FAILED)
        ]
        with Status(jobs) as status:
            _run(wanted, out, todo, free, states, status, signals)
        for cell in wanted.cells:
            if states[cell.name].kind == folder.FAILED:
                print(f"failed: {cell.name}: {states[cell.name].reason}", file=sys.stderr)
        kinds = [states[cell.name].kind for cell in wanted.cells]
        if signals.received:
            print("stopped; the same command continues", flush=True)
            return 128 + signals.received[0]
        if folder.FAILED in kinds and not retry_failed:
            print("--retry_failed tries the failed cells again", file=sys.stderr)
        return 0 if set(kinds) == {folder.FINISHED} else 1


def _run(
    plan: Plan,
    out: Path,
    todo: list[Cell],
    free: list[Share],
    states: dict[str, folder.State],
    status: Status,
    signals: "_Signals",
) -> None:
    """Start, watch and end the cells of `todo`; `states` has the last word on each."""
    waiting, running, passed_on = list(todo), list[_Job](), 0
    try:
        while True:
            # A sweep that was killed leaves cells at work: they have the devices until they end.
            adopted = [c for c in waiting if states[c.name].kind == folder.RUNNING]
            while waiting and free and not adopted and not signals.received:
                running.append(_start(plan, out, waiting.pop(0), free.pop()))
            for number in signals.received[passed_on:]:
                passed_on += 1
                for job in running:
                    # Once to save, again to end at once; then it does not seem able to answer.
                    job.process.send_signal(number if passed_on < 3 else signal.SIGKILL)
            for job in list(running):
                code = job.process.poll()
                if code is not None:
                    running.remove(job)
                    free.append(job.share)
                    _ended(out, job.cell, code)
                states[job.cell.name] = folder.state_of(out, job.cell)
            for cell in adopted:
                states[cell.name] = folder.state_of(out, cell)
                if states[cell.name].kind == folder.FINISHED:
                    waiting.remove(cell)
            at_work = {job.cell.name for job in running}
            status.show([_row(c, states[c.name], c.name in at_work) for c in plan.cells])
            if not running and (not waiting or signals.received):
                return
            time.sleep(_LOOK_SECONDS)
    finally:
        for job in running:
            job.process.terminate()


def _train(plan: Plan, cell: Cell, workdir: str) -> list[str]:
    return [sys.executable, "-m", "imagenet_jax.main", *command(plan, cell, workdir)]


def _start(plan: Plan, out: Path, cell: Cell, share: Share) -> _Job:
    workdir = out / cell.name
    environment = {"JAX_COMPILATION_CACHE_DIR": str((out / "compiled").resolve())}
    environment |= os.environ | share.environment | {"PYTHONUNBUFFERED": "1"}
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "failed.json").unlink(missing_ok=True)
        with (workdir / "log.txt").open("ab") as log, _on_cores(share.cores):
            process = subprocess.Popen(
                _train(plan, cell, str(workdir)),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C at the terminal reaches a cell once, through us; twice means "do not save".
                start_new_session=True,
            )
    except OSError as e:
        raise UserError(f"{workdir} cannot be written: {e.strerror}") from e
    return _Job(cell, process, share)


def _ended(out: Path, cell: Cell, code: int) -> None:
    """Record the failure of a process that ended with `code`, if it is one."""
    if code == 0 or code in _STOPPED or code in (-signal.SIGINT, -signal.SIGTERM):
        return
    lines = (out / cell.name / "log.txt").read_text(errors="replace").strip().splitlines()
    reason = f"killed by {signal.Signals(-code).name}" if code < 0 else lines[-1] if lines else ""
    folder.mark_failed(out / cell.name, code, reason)


def _row(cell: Cell, state: folder.State, at_work: bool) -> Row:
    """What the status shows of a cell; one that starts up is running too."""
    train = [line for line in state.history if line.get("split") == "train"]
    evaluated = [line for line in state.history if "weights" in line]
    rates = [line["images_per_second"] for line in train if "images_per_second" in line]
    seconds = None
    if rates and state.total:
        seconds = (state.total - state.step) * cell.config.batch_size / rates[-1]
    latest = ""
    if state.result or evaluated:
        latest = f"validation top-1 {(state.result or evaluated[-1])['top1']:.2%}"
    if train and not state.result:
        latest = f"loss {train[-1]['loss']:.4f}" + (f", {latest}" if latest else "")
    kind = folder.RUNNING if at_work else state.kind
    return Row(cell.name, kind, state.step, state.total, latest or state.reason, seconds)


@contextlib.contextmanager
def _on_cores(cores: frozenset[int]) -> Iterator[None]:
    """A process started inside stays on `cores`."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class _Signals:
    """While entered, the stop signals that have come, in their order."""

    def __init__(self) -> None:
        self.received: list[int] = []

    def __enter__(self) -> "_Signals":
        self._before = {n: signal.signal(n, self._add) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _add(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
