"""Training, from a config to a finished workdir: the page to read first.

    config -> experiment (data, model, optimizer, mesh)
    batches -> train step -> state   -> checkpoints
                          -> metrics -> writers

Everything random is a function of (config.seed, step), so the result of a step does not depend on
how often the run was stopped before it.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from imagenet_jax import config as config_io
from imagenet_jax.config.rules import warnings
from imagenet_jax.data import pipeline
from imagenet_jax.debug.determinism import require_repeatable
from imagenet_jax.debug.histograms import Histograms
from imagenet_jax.debug.nans import stop_at_nans
from imagenet_jax.debug.pictures import show_inputs, show_mistakes
from imagenet_jax.debug.profiling import traced
from imagenet_jax.logs.recorder import Recorder
from imagenet_jax.logs.saver import Saver
from imagenet_jax.logs.services import require_services
from imagenet_jax.logs.throughput import StepFlops
from imagenet_jax.runtime import workdir as workdirs
from imagenet_jax.runtime import xla
from imagenet_jax.runtime.integrity import set_aside_damaged
from imagenet_jax.runtime.lock import Lock
from imagenet_jax.runtime.processes import StopAgreement, is_first, require_same, run_on_first
from imagenet_jax.runtime.provenance import SAME_IN_EVERY_PROCESS, collect_provenance
from imagenet_jax.runtime.signals import StopRequested, StopSignal
from imagenet_jax.runtime.watchdog import Watchdog
from imagenet_jax.training import rewind
from imagenet_jax.training.checkpoint import Checkpoints, Position
from imagenet_jax.training.data_position import resume_at
from imagenet_jax.training.evaluate import Evaluator
from imagenet_jax.training.experiment import Experiment, make_experiment
from imagenet_jax.training.init_weights import (
    InitialWeights,
    read_initial_weights,
    require_its_classes,
    start_from,
)
from imagenet_jax.training.metrics import NonFiniteError
from imagenet_jax.training.optim import peak_learning_rate
from imagenet_jax.training.sharding import AHEAD, prefetch_to_device
from imagenet_jax.training.state import TrainState, count_parameters, create_state
from imagenet_jax.training.step import compile_train_step

# Steps under way on the device before the loop waits for the oldest: enough to keep it busy, few
# enough that their batches do not pile up in its memory.
_IN_FLIGHT = 3


def train(
    config: ConfigDict,
    workdir: Path,
    *,
    strict_restore: bool = False,
    stop_after: int | None = None,
    quiet: bool = False,
) -> int:
    """Train `config` in `workdir`, from its last checkpoint if it has one.

    Where that is damaged, from the one before it; `strict_restore` raises UserError instead.
    `stop_after` ends the run early and saves the state after that step. Training up to that step is
    identical to an uninterrupted run. `quiet` prints only errors and the final result.

    Returns the exit code: 0 when finished, 128 + the signal that stopped it, after saving.
    Raises UserError for what the user can mend, before anything is written; NonFiniteError where
    the loss, a gradient or a parameter left the numbers, with the last good checkpoint in place
    (config.nonfinite may go back to it first).
    """
    run_on_first(functools.partial(require_services, config))
    run = make_experiment(config)
    initial = None if workdirs.has_checkpoint(workdir) else read_initial_weights(config)
    provenance = collect_provenance(run.fingerprints)
    if initial:
        require_its_classes(initial, run.source)
        provenance["initial_weights"] = {"file": config.init.weights, "sha256": initial.sha256}
    everywhere = {name: provenance.get(name) for name in SAME_IN_EVERY_PROCESS}
    require_same({"config": config_io.to_json(config)} | everywhere)
    with StopSignal() as stop, contextlib.ExitStack() as stack:

        def lock() -> None:
            stack.enter_context(Lock(workdir))
            workdirs.check_start(workdir, config, provenance)
            for note in set_aside_damaged(workdir, strict=strict_restore):
                print(note)

        def claim() -> None:
            workdirs.record_start(workdir, config, provenance)
            workdirs.write_classes(workdir, run.source.class_names)

        run_on_first(lock)
        stack.enter_context(xla.keep_programs(workdir / "compiled"))
        checkpoints = Checkpoints(
            workdir / "checkpoints",
            keep=config.checkpoint.keep,
            metric=config.checkpoint.best_metric,
        )
        try:
            with Watchdog(config.log.watchdog_seconds) as watchdog:
                start = _start(run, workdir, checkpoints, initial)
                # Not earlier: a refused start changes no file.
                run_on_first(claim)
                while True:
                    try:
                        parts = (workdir, checkpoints, provenance, stop, watchdog, initial)
                        return _train(start, *parts, stop_after, quiet)
                    except NonFiniteError as e:
                        if config.nonfinite.policy == "stop":
                            raise
                        checkpoints.wait()
                        last = max(checkpoints.steps(), default=0)
                        run_on_first(functools.partial(rewind.record, workdir, e, last, config))
                        start = _start(run, workdir, checkpoints, initial)
        finally:
            checkpoints.close()


@dataclasses.dataclass(frozen=True)
class _Start:
    """What training continues from: `state` is that after step `first`; `note` is for the user."""

    run: Experiment
    first: int
    state: TrainState
    position: Position
    rewinds: list[rewind.Rewind]
    note: str = ""


def _start(
    run: Experiment, workdir: Path, checkpoints: Checkpoints, initial: InitialWeights | None
) -> _Start:
    """Restore the last checkpoint, or create the first state; UserError if that is impossible."""
    config, rewinds = run.config, rewind.read(workdir)
    rewind.require_size(rewinds, config.batch_size)
    if checkpoints.steps():
        first = checkpoints.find("latest")
        state, position = checkpoints.restore(run.abstract, first)
        run, note = resume_at(run, position, first, rewinds)
        return _Start(run, first, state, position, rewinds, note)
    state = create_state(config.model, run.parts.tx, config.ema.decay > 0, run.mesh, config.seed)
    if initial:
        state = start_from(initial, state, run.parts.tx)
    return _Start(run, 0, state, Position(data={}, interval={}), rewinds)


def _train(
    start: _Start,
    workdir: Path,
    checkpoints: Checkpoints,
    provenance: dict,
    stop: StopSignal,
    watchdog: Watchdog,
    initial: InitialWeights | None,
    stop_after: int | None,
    quiet: bool,
) -> int:
    run, first, state = start.run, start.first, start.state
    config, batch_of = run.config, rewind.Batches(start.rewinds)
    last = min(stop_after or run.total_steps, run.total_steps)

    recorder = Recorder(run, workdir, first, start.position.interval, quiet=quiet)
    if is_first():
        for values in rewind.unrecorded(start.rewinds, workdir / "metrics.jsonl"):
            recorder.write(first, "rewind", values)
    recorder.say(_headline(run, state.params, first))
    if start.note:
        recorder.warn(start.note)
    for warning in warnings(config):
        recorder.warn(f"warning: {warning}")
    if initial:
        recorder.say(f"starting from {initial.summary}")
    saver = Saver(checkpoints, recorder, run, batch_of, provenance)

    compiled_step = compile_train_step(run.parts, run.abstract, run.mesh)
    flops = StepFlops(compiled_step, run.abstract, config, run.mesh)
    evaluate = Evaluator(run.evaluation)
    eval_steps = run.steps_at(config.eval.every_epochs)
    save_steps = run.steps_at(config.checkpoint.every_epochs)
    batches_until = functools.partial(_batches, run, batch_of, first)
    train_step = stop_at_nans(compiled_step, run)
    batches = batches_until(last)
    in_flight: deque[tuple[jax.Array, float | None]] = deque()
    shape: tuple[int, ...] = ()
    agreed = StopAgreement(run.mesh)

    def idle() -> None:
        """Wait for all steps under way; what follows is not the train step's time."""
        jax.block_until_ready([loss for loss, _ in in_flight])
        in_flight.clear()
        recorder.stop_clock()

    def watched(batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the batches of an evaluation; a stop signal ends it between two of them."""
        for count in itertools.count(1):
            with stop.interrupting():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
            watchdog.beat()
            if number := agreed(count, stop.received):
                raise StopRequested(number)

    def evaluated(step: int) -> list[dict[str, Any]]:
        """Evaluate the state after `step`; the caller records the results."""
        idle()
        with recorder.evaluating():
            results = evaluate(state, watched)
        if step == run.total_steps:  # before it is saved: a finished run is not started again
            show_mistakes(recorder, run, state, watched)
        return results

    def save(step: int, *, required: bool) -> None:
        """Save the state after `step`; only steps that every run saves are ranked."""
        ranked_by = results if step in save_steps else None
        saver.save(state, step, ranked_by)
        if required:
            saver.require(state, step, ranked_by)

    histograms = Histograms(run, recorder, idle)
    turns = traced(range(first + 1, last + 1), config, workdir, idle, recorder.say)
    with contextlib.closing(recorder), turns as steps:
        require_repeatable(run, compiled_step, state, batches_until, recorder.say, watchdog.beat)
        recorder.start()
        done, results = first, None
        try:
            recorded = recorder.has_evaluation(first)
            lacking = first in save_steps and checkpoints.lacks_metrics(first)
            if first in eval_steps and (lacking or not recorded):
                results = evaluated(first)  # a stop signal, or a full disk, ended this evaluation
                if not recorded:
                    recorder.evaluated(first, results)
                if lacking:
                    saver.complete(first, results, required=first == last)
            for step in steps:
                with recorder.waiting(), stop.interrupting():
                    batch = next(batches)
                skipped = batch.pop("skipped", [])
                if step == 1:
                    show_inputs(recorder, run, batch)
                if batch["image"].shape != shape:  # the step is compiled for this size
                    idle()
                    shape = batch["image"].shape
                histograms.before(step, state, batch)
                state, metrics = train_step(state, batch)
                done, results = step, None
                watchdog.beat()
                recorder.step(step, metrics, skipped)
                in_flight.append((metrics["loss"], flops(batch)))
                histograms.after(step, state)
                if len(in_flight) > _IN_FLIGHT:
                    loss, operations = in_flight.popleft()
                    loss.block_until_ready()
                    if step <= last - AHEAD:  # after that all input was read, and steps are faster
                        recorder.done(operations)

                if step in eval_steps:
                    recorder.report(step)
                    results = evaluated(step)
                    recorder.evaluated(step, results)
                if step in save_steps or step == last:
                    idle()
                    save(step, required=step == last)
                if step % config.log.every_steps == 0:
                    saver.tell_failures()
                number = agreed(step, stop.received)
                if number and step < last:
                    raise StopRequested(number)
        except StopRequested as e:
            if done:
                save(done, required=True)
            where = f"after step {done}, saved" if done else "before the first step"
            recorder.end(f"stopped by signal {e.number} {where}; the same command continues")
            stop.saved(e)
            return 128 + e.number
        how = "finished" if last == run.total_steps else "ended early, as asked"
        recorder.end(f"{how}: {last} steps in {workdir}{_skipped(recorder.skipped)}")
        return 0


def _batches(
    run: Experiment, batch_of: rewind.Batches, first: int, last: int
) -> Iterator[dict[str, Any]]:
    """The batches of steps first + 1 .. last on the devices, those under way included."""
    config = run.config
    rows = itertools.chain.from_iterable(
        pipeline.train_batches(
            run.source,
            run.sampler,
            config.data,
            config.augment,
            start_step=start,
            total_steps=end,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        for start, end in batch_of.spans(first, last)
    )
    return prefetch_to_device(rows, run.mesh)


def _headline(run: Experiment, params: dict, first: int) -> str:
    config, devices = run.config, jax.devices()
    resumed = f"; continuing after step {first}" if first else ""
    return (
        f"{config.model.name}, {count_parameters(params):,} parameters; {len(run.source):,} images "
        f"in {len(run.source.class_names)} classes; {run.total_steps:,} steps of "
        f"{config.batch_size} on {len(devices)} x {devices[0].device_kind}; peak learning rate "
        f"{peak_learning_rate(config.optim, config.batch_size):g}{resumed}"
    )


def _skipped(count: int) -> str:
    return (
        f"; {count:,} undecodable image{'s' * (count != 1)} skipped, named in metrics.jsonl"
        if count
        else ""
    )
