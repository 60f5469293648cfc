"""Runs the trials of a sweep on this machine, each in its own process."""

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from imagenet_jax.errors import UserError
from imagenet_jax.runtime.lock import Lock
from imagenet_jax.sweep import folder
from imagenet_jax.sweep.plan import Plan, Trial
from imagenet_jax.sweep.progress import Progress, make_row

_POLL_SECONDS = 0.5
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STOPPED = {code for number in _SIGNALS for code in (128 + number, -number)}
# Run in a separate process, because a process that opens the devices holds their memory.
_COUNT_DEVICES = "import jax; print(jax.default_backend(), jax.local_device_count())"


@dataclass(frozen=True)
class Slot:
    """The part of the machine that a trial uses: environment variables, and cores (empty: all)."""

    environment: dict[str, str] = field(default_factory=dict)
    cores: frozenset[int] = frozenset()


@dataclass
class _Job:
    trial: Trial
    process: subprocess.Popen
    slot: Slot


def trial_flags(plan: Plan, trial: Trial, workdir: str) -> list[str]:
    """Return the arguments of `python -m imagenet_jax.main` that train a trial."""
    fields = (*plan.overrides, *trial.setting.overrides, ("seed", str(trial.seed)))
    changes = (f"--config.{name}={text}" for name, text in fields)
    return [f"--config={plan.spec}", f"--workdir={workdir}", *changes]


def run_here(plan: Plan, out: Path, args: argparse.Namespace) -> int:
    """Run every trial that is not finished, `args.jobs` at a time, and return the exit code.

    The exit code is 0 if all trials are finished, 1 if one failed, or 128 + the number of the
    signal that stopped the sweep. Signals are passed on to the trials, which save. With
    `args.dry_run`, only the commands are printed.

    Raises UserError, before anything starts, if `out` belongs to another sweep, a workdir to
    another config, or there are more jobs than devices.
    """
    slots = make_slots(1 if args.jobs is None else args.jobs)
    if args.dry_run:
        for trial in folder.extend_plan(out, plan)[0].trials:
            print(shlex.join(_command(plan, trial, out)))
        return 0
    with Lock(out, does="runs a sweep", flag="--out"), _collect_signals() as signals:
        wanted, recorded = folder.extend_plan(out, plan)
        states = folder.read_states(out, wanted.trials)
        folder.write_plan(out, recorded)
        done = (folder.FINISHED,) if args.retry_failed else (folder.FINISHED, folder.FAILED)
        waiting = [trial for trial in wanted.trials if states[trial.name].kind not in done]
        _Runner(wanted, out, waiting, slots, states, signals).run()
        for name, state in states.items():
            if state.kind == folder.FAILED:
                print(f"failed: {name}: {state.reason}", file=sys.stderr)
        if signals:
            print("stopped; the same command continues", flush=True)
            return 128 + signals[0]
        kinds = {state.kind for state in states.values()}
        if folder.FAILED in kinds and not args.retry_failed:
            print("--retry_failed runs the failed trials again", file=sys.stderr)
        return 0 if kinds == {folder.FINISHED} else 1


def make_slots(jobs: int) -> list[Slot]:
    """Divide the machine into `jobs` slots of whole GPUs, or of cores of a CPU.

    A single job gets the whole machine. Raises UserError if there are fewer devices than jobs. TPUs
    cannot be divided.
    """
    if jobs < 1:
        raise UserError(f"--jobs={jobs}: use at least 1")
    if jobs == 1:
        return [Slot()]
    backend, count = _find_devices()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    core_sets = [frozenset(cores[i::jobs]) for i in range(jobs)]
    if backend == "cpu":
        if cores and len(cores) < jobs:
            raise UserError(f"--jobs={jobs} needs one core per job, but there are {len(cores)}")
        return [Slot(cores=own) for own in core_sets]
    if backend != "gpu":
        raise UserError(f"--jobs={jobs}: one process takes all {backend} devices; use --jobs=1")
    if count < jobs:
        raise UserError(f"--jobs={jobs} needs one GPU per job, but there are {count}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",")[:count] if visible else [str(i) for i in range(count)]
    each = count // jobs  # equal for all, so that batches are divided in the same way
    return [
        Slot({"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * each : (i + 1) * each])}, own)
        for i, own in enumerate(core_sets)
    ]


def _find_devices() -> tuple[str, int]:
    """Return jax's default backend ("cpu", "gpu" or "tpu") and its number of devices."""
    done = subprocess.run([sys.executable, "-c", _COUNT_DEVICES], capture_output=True, text=True)
    words = done.stdout.split()
    if done.returncode or len(words) < 2:
        lines = done.stderr.strip().splitlines()
        raise UserError(f"jax finds no devices: {lines[-1] if lines else 'no reason given'}")
    return words[-2], int(words[-1])


@dataclass
class _Runner:
    """Starts, watches and stops the waiting trials, and updates `states`."""

    plan: Plan
    out: Path
    waiting: list[Trial]
    slots: list[Slot]  # free ones
    states: dict[str, folder.State]
    signals: list[int]  # received so far
    jobs: list[_Job] = field(default_factory=list)
    forwarded: int = 0

    def run(self) -> None:
        """Run the trials until none is left or, after a signal, until all have ended."""
        try:
            with Progress(len(self.slots)) as progress:
                while True:
                    self._start_waiting()
                    self._forward_signals()
                    self._update_jobs()
                    running = {job.trial.name for job in self.jobs}
                    trials = self.plan.trials
                    progress.show(
                        [make_row(t, self.states[t.name], t.name in running) for t in trials]
                    )
                    if not self.jobs and (not self.waiting or self.signals):
                        return
                    time.sleep(_POLL_SECONDS)
        finally:
            for job in self.jobs:
                job.process.terminate()

    def _start_waiting(self) -> None:
        # The trials of a sweep that was killed keep running, and hold the devices until they end.
        orphans = [t for t in self.waiting if self.states[t.name].kind == folder.RUNNING]
        for trial in orphans:
            self.states[trial.name] = folder.read_state(self.out, trial)
            if self.states[trial.name].kind == folder.FINISHED:
                self.waiting.remove(trial)
        while self.waiting and self.slots and not orphans and not self.signals:
            self.jobs.append(self._start(self.waiting.pop(0), self.slots.pop()))

    def _forward_signals(self) -> None:
        for number in self.signals[self.forwarded :]:
            self.forwarded += 1
            for job in self.jobs:
                # The first signal makes a trial save, and the second makes it exit; then kill it.
                job.process.send_signal(number if self.forwarded < 3 else signal.SIGKILL)

    def _update_jobs(self) -> None:
        for job in list(self.jobs):
            code = job.process.poll()
            if code is not None:
                self.jobs.remove(job)
                self.slots.append(job.slot)
                if code != 0 and code not in _STOPPED:
                    _record_failure(self.out / job.trial.name, code)
            self.states[job.trial.name] = folder.read_state(self.out, job.trial)

    def _start(self, trial: Trial, slot: Slot) -> _Job:
        workdir = self.out / trial.name
        environment = {"JAX_COMPILATION_CACHE_DIR": str((self.out / "compiled").resolve())}
        environment |= os.environ | slot.environment | {"PYTHONUNBUFFERED": "1"}
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            (workdir / "failed.json").unlink(missing_ok=True)
            with (workdir / "log.txt").open("ab") as log:
                # Start a new session, so that Ctrl-C reaches a trial only once, through this
                # process. A second signal would end the trial before it has saved.
                process = subprocess.Popen(
                    _command(self.plan, trial, self.out), env=environment, start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                )  # fmt: skip
            if slot.cores:
                os.sched_setaffinity(process.pid, slot.cores)
        except OSError as e:
            raise UserError(f"{workdir} cannot be written: {e.strerror}") from e
        return _Job(trial, process, slot)


def _command(plan: Plan, trial: Trial, out: Path) -> list[str]:
    flags = trial_flags(plan, trial, str(out / trial.name))
    return [sys.executable, "-m", "imagenet_jax.main", *flags]


def _record_failure(workdir: Path, code: int) -> None:
    lines = (workdir / "log.txt").read_text(errors="replace").strip().splitlines()
    reason = f"killed by {signal.Signals(-code).name}" if code < 0 else lines[-1] if lines else ""
    folder.mark_failed(workdir, code, reason)


@contextlib.contextmanager
def _collect_signals() -> Iterator[list[int]]:
    """Yield a list to which every SIGINT and SIGTERM is appended."""
    received: list[int] = []

    def append(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, append) for number in _SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
