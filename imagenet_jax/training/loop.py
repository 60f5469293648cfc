"""Training, from a config to a finished workdir: the page to read first.

    config -> experiment (data, model, optimizer, mesh)
    batches -> train step -> state   -> checkpoints
                          -> metrics -> writers

Everything random is a function of (config.seed, step), so the result of a step does not depend on
how often the run was stopped before it.
"""

import contextlib
import functools
import itertools
from collections import deque
from pathlib import Path

import jax
from ml_collections import ConfigDict

from imagenet_jax import config as config_io
from imagenet_jax.data import pipeline
from imagenet_jax.errors import UserError
from imagenet_jax.reporting.writers import ConsoleWriter, JsonlWriter, TensorBoardWriter, Writers
from imagenet_jax.training import compiler, rewind
from imagenet_jax.training import workdir as workdirs
from imagenet_jax.training.checkpoint import Checkpoints, Position
from imagenet_jax.training.evaluation import Evaluator
from imagenet_jax.training.experiment import Experiment, experiment_of
from imagenet_jax.training.initialization import (
    InitialWeights,
    read_initial_weights,
    start_from,
)
from imagenet_jax.training.metrics import Interval, MetricWindow, NonFiniteError
from imagenet_jax.training.processes import (
    StopAgreement,
    gather_names,
    is_first,
    on_first,
    require_same,
)
from imagenet_jax.training.recovery import set_aside_damaged
from imagenet_jax.training.running import Running
from imagenet_jax.training.sharding import place_batches
from imagenet_jax.training.signals import StopSignal
from imagenet_jax.training.state import count_parameters, create_state
from imagenet_jax.training.step import compile_train_step
from imagenet_jax.training.throughput import Throughput
from imagenet_jax.training.watchdog import Watchdog

# Steps under way on the device before the loop waits for the oldest: enough to keep it busy, few
# enough that their batches do not pile up in its memory.
_IN_FLIGHT = 3


def train(config: ConfigDict, workdir: Path, *, strict_restore: bool = False) -> int:
    """Train `config` in `workdir`, from its last checkpoint if it has one.

    Where that is damaged, from the one before it; `strict_restore` raises UserError instead.

    Returns the exit code: 0 when finished, 128 + the signal that stopped it, after saving.
    Raises UserError for what the user can mend, before anything is written; NonFiniteError where
    the loss, a gradient or a parameter left the numbers, with the last good checkpoint in place
    (config.nonfinite may go back to it first).
    """
    run = experiment_of(config)
    initial = None if workdirs.has_checkpoint(workdir) else read_initial_weights(config)
    provenance = workdirs.provenance_of(run.fingerprints)
    if initial:
        provenance["initial_weights"] = {"file": config.init.weights, "sha256": initial.sha256}
    require_same({"config": config_io.to_json(config), **provenance})
    with StopSignal() as stop, contextlib.ExitStack() as stack:

        def claim() -> None:
            stack.enter_context(Running(workdir))
            workdirs.claim(workdir, config, provenance)
            workdirs.write_classes(workdir, run.source.class_names)
            for note in set_aside_damaged(workdir, strict=strict_restore):
                print(note)

        on_first(claim)
        compiler.keep_programs(workdir / "compiled")
        checkpoints = Checkpoints(
            workdir / "checkpoints",
            keep=config.checkpoint.keep,
            metric=config.checkpoint.best_metric,
        )
        try:
            with Watchdog(config.log.watchdog_seconds) as watchdog:
                while True:
                    try:
                        parts = (run, workdir, checkpoints, provenance, stop, watchdog, initial)
                        return _train(*parts)
                    except NonFiniteError as e:
                        if config.nonfinite.policy == "stop":
                            raise
                        checkpoints.wait()
                        last = max(checkpoints.steps(), default=0)
                        plan = config.nonfinite
                        on_first(functools.partial(rewind.record, workdir, e, last, plan))
        finally:
            checkpoints.close()


def _train(
    run: Experiment,
    workdir: Path,
    checkpoints: Checkpoints,
    provenance: dict,
    stop: StopSignal,
    watchdog: Watchdog,
    initial: InitialWeights | None,
) -> int:
    config, every = run.config, run.config.log.every_steps
    rewinds = rewind.read(workdir)
    batch_of = rewind.Batches(rewinds)

    if checkpoints.steps():
        first = checkpoints.find("latest")
        state, position = checkpoints.restore(run.abstract, first)
    else:
        first, position = 0, Position(data={"next_index": 0}, interval={})
        state = create_state(config.model, run.tx, config.ema.decay > 0, run.mesh, config.seed)
        if initial:
            state = start_from(initial, state, run.tx)

    console = ConsoleWriter(run.total_steps, config.batch_size, quiet=not is_first())
    writers = Writers(console)
    if is_first():
        try:
            writers.add(JsonlWriter(workdir / "metrics.jsonl", first))
            if config.log.tensorboard:
                writers.add(TensorBoardWriter(workdir / "tensorboard", first))
        except OSError as e:
            raise UserError(f"the metrics in {workdir} cannot be written: {e.strerror}") from e
        for values in rewind.unrecorded(rewinds, workdir / "metrics.jsonl"):
            writers.write(first, "rewind", values)
    console.say(_headline(run, state.params, first))
    if initial:
        console.say(f"starting from {initial.summary}")

    train_step = compile_train_step(
        run.abstract, run.mesh, run.graph, run.tx, run.schedule, config, run.averaging
    )
    evaluate = Evaluator(run.evaluation)
    eval_steps = run.steps_at(config.eval.every_epochs)
    save_steps = run.steps_at(config.checkpoint.every_epochs)
    batches = place_batches(
        itertools.chain.from_iterable(
            pipeline.train_batches(
                run.source,
                run.order,
                config.data,
                config.augment,
                start_step=start,
                total_steps=end,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            )
            for start, end in batch_of.spans(first, run.total_steps)
        ),
        run.mesh,
    )
    window = MetricWindow(every, run.total_steps, Interval(**position.interval))
    throughput = Throughput(config.batch_size)
    speed: dict[int, dict[str, float]] = {}
    in_flight: deque[jax.Array] = deque()
    agreed = StopAgreement(run.mesh)

    def report(upto: int) -> None:
        """Write the intervals that are complete by step `upto`; NonFiniteError if one is bad."""
        for last, values in window.fetch(upto):
            if config.data.undecodable == "skip":
                values |= _names_of_all(values.get("skipped", []))
            epoch = {"epoch": last / run.steps_per_epoch}
            writers.write(last, "train", epoch | values | speed.pop(last, {}))

    def save(step: int, results: list[dict] | None) -> None:
        """Start saving; what fails is told now or later, and training goes on."""
        try:
            writers.flush()  # no checkpoint knows of a step that metrics.jsonl does not
        except OSError as e:
            console.say(f"checkpoint {step} not saved, the metrics cannot be: {e.strerror}")
            if jax.process_count() == 1:  # others have begun to save and would wait for this one
                return
        checkpoints.save(
            state,
            Position(data={"next_index": batch_of.of_step(step) + 1}, interval=window.partial()),
            config=config.to_dict(),
            provenance=provenance,
            metrics=_numbers(results[0]) if results else None,
        )

    def require_saved(step: int, results: list[dict] | None) -> None:
        """Wait for the last save; where it failed try again, for the run ends with it."""
        for attempt in range(2):
            if attempt:
                save(step, results)
            checkpoints.wait()
            tell_failures()
            kept = checkpoints.steps()
            if step in kept:
                return
        left = f"the newest checkpoint is of step {kept[-1]}" if kept else "there is no checkpoint"
        raise UserError(
            f"step {step} could not be saved in {workdir / 'checkpoints'}: {left}; make space and "
            "start the same command again"
        )

    def tell_failures() -> None:
        for failure in checkpoints.failures():
            console.say(failure)

    try:
        for step in range(first + 1, run.total_steps + 1):
            with throughput.waiting():
                batch = next(batches)
            skipped = batch.pop("skipped", [])
            state, metrics = train_step(state, batch)
            throughput.step()
            watchdog.beat()
            console.progress(step)
            window.append(step, metrics, skipped)
            in_flight.append(metrics["loss"])
            if len(in_flight) > _IN_FLIGHT:
                in_flight.popleft().block_until_ready()

            if step % every == 0:
                speed[step] = throughput.lap()
                report(step - every)  # one interval late: those values are there, nobody waits
                tell_failures()
            results = None
            if step in eval_steps:
                report(step)
                with throughput.paused():
                    results = evaluate(state, watchdog.beat)
                for result in results:
                    writers.write(step, config.data.eval_split, result)
            stopped_by = agreed(step, stop.received)
            if step in save_steps or stopped_by:
                report(step)  # what is not finite is not saved
                save(step, results)
            if step == run.total_steps or stopped_by:
                require_saved(step, results)
            if stopped_by and step < run.total_steps:
                console.say(
                    f"stopped by signal {stopped_by} after step {step}, saved; the same "
                    "command continues"
                )
                return 128 + stopped_by
        console.say(f"finished: {run.total_steps} steps in {workdir}{_skipped(window.skipped)}")
        return 0
    finally:
        writers.close()


def _headline(run: Experiment, params: dict, first: int) -> str:
    config, devices = run.config, jax.devices()
    resumed = f"; continuing after step {first}" if first else ""
    return (
        f"{config.model.name}, {count_parameters(params):,} parameters; {len(run.source):,} images "
        f"in {len(run.source.class_names)} classes; {run.total_steps:,} steps of "
        f"{config.batch_size} on {len(devices)} x {devices[0].device_kind}{resumed}"
    )


def _names_of_all(skipped: list[str]) -> dict[str, list[str]]:
    """{"skipped": the names of every process}, or {} where there is none."""
    names = gather_names(skipped)
    return {"skipped": names} if names else {}


def _skipped(count: int) -> str:
    return (
        f"; {count:,} undecodable image{'s' * (count != 1)} skipped, named in metrics.jsonl"
        if count
        else ""
    )


def _numbers(result: dict) -> dict[str, float]:
    return {name: value for name, value in result.items() if isinstance(value, int | float)}
