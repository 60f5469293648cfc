"""The training loop, from a config to a finished workdir. Read this file first.

    config -> experiment (data, model, optimizer, mesh)
    batches -> train step -> state   -> checkpoints
                          -> metrics -> metrics.jsonl, console, TensorBoard

All random numbers are functions of (config.seed, step), so a step gives the same result no matter
how often the run was interrupted.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from imagenet_jax.data import pipeline
from imagenet_jax.debug.hooks import make_hooks
from imagenet_jax.logs.recorder import Recorder, Saver
from imagenet_jax.logs.throughput import count_flops
from imagenet_jax.runtime.processes import run_on_first
from imagenet_jax.runtime.stopping import StopRequested
from imagenet_jax.training.data_position import BatchOrder
from imagenet_jax.training.evaluate import Evaluator, Result
from imagenet_jax.training.experiment import make_experiment
from imagenet_jax.training.metric_window import NonFiniteError
from imagenet_jax.training.run_context import RunContext, Start
from imagenet_jax.training.sharding import AHEAD, prefetch_to_device
from imagenet_jax.training.step import compile_train_step


def train(
    config: ConfigDict,
    workdir: Path,
    *,
    strict_restore: bool = False,
    stop_after: int | None = None,
    quiet: bool = False,
) -> int:
    """Train `config` in `workdir`, starting from its last intact checkpoint if there is one.

    Args:
      strict_restore: raise UserError if the last checkpoint is damaged.
      stop_after: end early and save the state after this step. Training up to that step is
        identical to a full run.
      quiet: print only errors and the final result.

    Returns:
      The exit code: 0 if training finished, 128 + the number of the signal that stopped it. The
      state is saved in both cases.

    Raises UserError for bad input, before anything is written, and NonFiniteError if the loss, a
    gradient or a parameter became NaN or infinite. Earlier checkpoints are kept.
    """
    if config.log.wandb or config.log.mlflow:
        from imagenet_jax.logs.trackers import require_services

        run_on_first(functools.partial(require_services, config))
    experiment = make_experiment(config)
    with RunContext(experiment, workdir, strict_restore=strict_restore, quiet=quiet) as context:
        start = context.restore()
        context.record_start()
        while True:
            try:
                return _Loop(start, context, stop_after, quiet).run()
            except NonFiniteError as error:  # raised again unless the policy is "rewind"
                context.record_rewind(error)
            start = context.restore()


class _Loop:
    """Trains from a start to the last step or a stop signal.

    Attributes:
      state: the current state.
      step: the number of steps that led to it.
      results: the results of its evaluation, or None if it has not been evaluated.
    """

    def __init__(self, start: Start, context: RunContext, stop_after: int | None, quiet: bool):
        run, config = start.run, start.run.config
        self.experiment, self.config, self.context = run, config, context
        self.state, self.step = start.state, start.step
        self.results: list[Result] | None = None
        self.last = min(stop_after or run.total_steps, run.total_steps)
        self.eval_steps = run.steps_at(config.eval.every_epochs)
        self.save_steps = run.steps_at(config.checkpoint.every_epochs)
        self.batch_order = BatchOrder(start.rewinds)
        self.recorder = Recorder(start, context.workdir, quiet=quiet)
        self.saver = Saver(
            context.checkpoints, self.recorder, run, self.batch_order, context.provenance
        )
        self.train_step = compile_train_step(run.parts, run.abstract, run.mesh)
        self.evaluator = Evaluator(run.evaluation)
        self.hooks = make_hooks(run, self.recorder, context.watchdog, context.workdir, start.step)
        self.image_shape: tuple[int, ...] = ()

    def run(self) -> int:
        """Run the loop and return the exit code."""
        recorder, config, last = self.recorder, self.config, self.last
        with contextlib.closing(recorder), contextlib.ExitStack() as stack:
            for hook in self.hooks:
                stack.callback(hook.close)
            for hook in self.hooks:
                hook.before_training(self.state, self.train_step, self.make_batches)
            recorder.start()
            try:
                self.repeat_lost_evaluation()
                batches = self.make_batches(last)
                for step in range(self.step + 1, last + 1):
                    self.take_step(step, batches)
                    if step in self.eval_steps:
                        recorder.report(step)
                        recorder.evaluated(step, self.evaluate())
                    if step in self.save_steps or step == last:
                        recorder.throughput.drain()
                        self.save(required=step == last)
                    if step % config.log.every_steps == 0:
                        self.saver.report_failures()
                    if step < last:
                        self.context.check_stop(step)
                    for hook in self.hooks:
                        hook.end_step(step)
            except StopRequested as e:
                if self.step:
                    self.save(required=True)
                where = f"after step {self.step}, saved" if self.step else "before the first step"
                recorder.end(f"stopped by signal {e.number} {where}; the same command continues")
                self.context.stop.saved(e)
                return 128 + e.number
            how = "finished" if last == self.experiment.total_steps else "ended early, as asked"
            recorder.end(f"{how}: {last} steps in {self.context.workdir}{recorder.skipped_note()}")
            return 0

    def take_step(self, step: int, batches: Iterator[dict[str, Any]]) -> None:
        """Dispatch `step` on the next batch, without waiting for its result."""
        throughput = self.recorder.throughput
        for hook in self.hooks:
            hook.begin_step(step)
        with throughput.waiting(), self.context.stop.interrupting():
            batch = next(batches)
        skipped = batch.pop("skipped", [])
        compiling: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if batch["image"].shape != self.image_shape:  # the step is compiled for each shape
            throughput.drain()
            self.image_shape = batch["image"].shape
            compiling = self.recorder.compiling()
        for hook in self.hooks:
            hook.before_update(step, self.state, batch)
        with compiling:
            self.state, metrics = self.train_step(self.state, batch)
        self.step, self.results = step, None
        self.context.watchdog.beat()
        throughput.dispatched(metrics["loss"], count_flops(self.config, self.image_shape))
        for hook in self.hooks:
            hook.after_update(step, self.state, metrics)
        self.recorder.step(step, metrics, skipped)
        # The last AHEAD steps are not timed: they are faster, because no input is read any more.
        throughput.wait_for_oldest(timed=step <= self.last - AHEAD)

    def evaluate(self) -> list[Result]:
        """Evaluate the state and return the results, which the caller records."""
        self.recorder.throughput.drain()
        with self.recorder.evaluating():
            results = self.evaluator(self.state, self.context.watch)
        for hook in self.hooks:
            hook.after_evaluation(self.step, self.state, self.context.watch)
        self.results = results
        return results

    def repeat_lost_evaluation(self) -> None:
        """Evaluate the restored state if its results were lost to a stop signal or a full disk."""
        step = self.step
        recorded = self.recorder.has_evaluation(step)
        unranked = step in self.save_steps and self.context.checkpoints.lacks_metrics(step)
        if step not in self.eval_steps or (recorded and not unranked):
            return
        results = self.evaluate()
        if not recorded:
            self.recorder.evaluated(step, results)
        if unranked:
            self.saver.add_results(step, results, required=step == self.last)

    def save(self, *, required: bool) -> None:
        """Save the state. A checkpoint has no results if only a stop signal caused it."""
        results = self.results if self.step in self.save_steps else None
        self.saver.save(self.state, self.step, results, required=required)

    def make_batches(self, last: int) -> Iterator[dict[str, Any]]:
        """Return the batches of steps self.step + 1 .. `last`, on the devices."""
        run, config = self.experiment, self.config
        rows = itertools.chain.from_iterable(
            pipeline.train_batches(
                run.source,
                run.sampler,
                config,
                start_step=start,
                total_steps=end,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            )
            for start, end in self.batch_order.ranges(self.step, last)
        )
        return prefetch_to_device(rows, run.mesh)
