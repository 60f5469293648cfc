"""Checkpoints: state, data position, config and provenance, saved together or not at all.

Layout of `checkpoints/STEP/` (orbax, one directory per item, committed by a rename):
  weights     params, batch_stats and ema: all that evaluation needs
  optimizer   step and opt_state
  position    JSON: the data position and the sums of the logging interval under way
  config, provenance   JSON
  metrics     JSON, where the step was evaluated
and `checksums.json` (integrity.py).
"""

import dataclasses
import functools
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from imagenet_jax import strict_json
from imagenet_jax.errors import UserError, one_line
from imagenet_jax.runtime import integrity
from imagenet_jax.runtime.processes import count, is_first, run_on_first
from imagenet_jax.training import disk, leaves
from imagenet_jax.training.metrics import score
from imagenet_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run stands beside its state: a few bytes.

    Attributes:
      data: records trained on, and what their order depends on (data_position.py).
      interval: sums of the logging interval under way (metrics.Interval as a dict).
    """

    data: dict[str, Any]
    interval: dict[str, Any]


class Checkpoints:
    """The checkpoints of a workdir; saving returns while files are still being written."""

    def __init__(self, directory: Path, *, keep: int = 1, metric: str = "top1", write: bool = True):
        self.directory = directory
        self._keep, self._metric, self._write = keep, metric, write
        self._saving: int | None = None
        self._failures: list[str] = []
        try:
            self._manager = self._open(create=write)
        except ValueError as e:  # the metrics of a checkpoint are no JSON
            raise UserError(f"a checkpoint in {directory} is damaged: {one_line(e)}") from e
        except OSError as e:
            raise UserError(f"{directory} cannot be opened: {e.strerror}") from e

    def _open(self, *, create: bool) -> ocp.CheckpointManager:
        by_metric = functools.partial(score, name=self._metric)
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(self._keep),
                checkpoint_managers.BestN(
                    get_metric_fn=by_metric, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=by_metric,
            preservation_policy=policy,
            create=create,
            read_only=not self._write,
            # What a killed writer left behind; complete checkpoints are never touched.
            cleanup_tmp_directories=create,
            async_options=ocp.AsyncOptions(
                # In the thread that writes, when all files are there and none is committed yet.
                post_finalization_callback=self._write_checksums,
                # Otherwise threads wait 20 minutes for folders that could not be made.
                create_directories_asynchronously=False,
            ),
        )
        return ocp.CheckpointManager(self.directory.absolute(), options=options)

    def save(
        self,
        state: TrainState,
        position: Position,
        *,
        config: dict[str, Any],
        provenance: dict[str, Any],
        metrics: dict[str, float] | None,
    ) -> None:
        """Start saving under the state's step. The state may be donated as soon as this returns.

        Where the disk is full or not writable, nothing is raised: `failures` tells, and the
        checkpoints before stay.
        """
        step = int(state.step)
        self._settle()
        if run_on_first(lambda: step in self._manager.all_steps()):
            return
        self._saving = step
        self._remove_parts()
        try:
            if count() == 1:  # others would wait for the one that raises
                disk.require_space(self.directory, sum(x.nbytes for x in jax.tree.leaves(state)))
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    weights=ocp.args.StandardSave(_weights(state)),
                    optimizer=ocp.args.StandardSave(
                        {"step": state.step, "opt_state": state.opt_state}
                    ),
                    position=ocp.args.JsonSave(dataclasses.asdict(position)),
                    config=ocp.args.JsonSave(config),
                    provenance=ocp.args.JsonSave(provenance),
                ),
                metrics=None if metrics is None else strict_json.encode(metrics),
                force=True,  # it is this caller who decides when
            )
        except (OSError, ValueError) as e:  # ValueError: tensorstore's, of any status
            self._abandon(e)

    def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Give checkpoint `step` the metrics that it was saved without.

        If that fails, the checkpoint still lacks them and `failures` says why. Every process must
        call it.
        """
        self._settle()

        def write() -> None:
            directory = self.directory / str(step)
            part = directory / ".metrics"
            try:
                part.mkdir(exist_ok=True)
                (part / "metrics").write_text(strict_json.dumps(metrics))  # as orbax does
                part.rename(directory / "metrics")
                integrity.add_checksum(directory, "metrics/metrics")
            except OSError as e:
                for written in (part, directory / "metrics"):
                    shutil.rmtree(written, ignore_errors=True)
                self._failures.append(
                    f"checkpoint {step} could not get its metrics: {disk.reason(e)}"
                )

        if self.lacks_metrics(step):
            run_on_first(write)
            self._manager.reload()

    def lacks_metrics(self, step: int) -> bool:
        """Return whether checkpoint `step` has no metrics yet; every process must call it."""

        def lacks() -> bool:
            return step in self._manager.all_steps() and self._manager.metrics(step) is None

        return run_on_first(lacks)

    def _settle(self) -> None:
        """Until the save under way is complete or has failed."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as e:
            self._abandon(e)

    def _abandon(self, error: Exception) -> None:
        """Note the failure, free the space of what was written, and begin afresh."""
        self._failures.append(f"checkpoint {self._saving} could not be saved: {disk.reason(error)}")
        # The manager keeps errors of its other threads for the next save, and has forgotten the
        # checkpoints that the failed one was to replace. It closes when it has told all of them.
        for _ in range(4):
            try:
                self._manager.close()
                break
            except (OSError, ValueError):
                continue
        self._remove_parts()
        self._manager = self._open(create=False)

    def _remove_parts(self) -> None:
        """What failed saves left, also what their last threads wrote after an earlier removal."""
        if is_first():
            for part in self.directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(part, ignore_errors=True)

    def failures(self) -> list[str]:
        """A line per save that failed and was not told yet; it waits for none under way."""
        if count() == 1 and not self._manager.is_saving_in_progress():
            self._settle()
        told, self._failures = self._failures, []
        return told

    def _write_checksums(self) -> None:
        if is_first():
            # As orbax names a checkpoint that is not committed yet.
            (part,) = self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*")
            integrity.write_checksums(part)

    def restore(self, abstract: TrainState, step: int) -> tuple[TrainState, Position]:
        """The state at `step` in the shardings of `abstract`, and the position beside it.

        Raises UserError where the code's arrays are not those of the checkpoint, naming them. The
        files are taken as they are: `integrity.set_aside_damaged` has looked at them.
        """
        optimizer = {"step": abstract.step, "opt_state": abstract.opt_state}
        path = self.directory.absolute() / str(step)
        leaves.require_same(path / "weights", _weights(abstract))
        leaves.require_same(path / "optimizer", optimizer)
        got = self._restore(
            step,
            weights=ocp.args.StandardRestore(_weights(abstract)),
            optimizer=ocp.args.StandardRestore(optimizer),
            position=ocp.args.JsonRestore(),
        )
        state = TrainState(
            step=got.optimizer["step"],
            opt_state=got.optimizer["opt_state"],
            params=got.weights["params"],
            batch_stats=got.weights["batch_stats"],
            ema=got.weights.get("ema"),
        )
        return state, Position(**run_on_first(lambda: got.position))

    def restore_chosen(self, abstract: TrainState, which: str) -> tuple[TrainState, int]:
        """Restore the weights that "latest", "best" or a number names, and return their step too.

        A run may remove a checkpoint while it is read; then the choice is made again. Raises
        UserError as `find` and `restore_weights` do.
        """
        while True:
            step = self.find(which)
            try:
                return self.restore_weights(abstract, step), step
            except integrity.RemovedCheckpoint:
                if which.isdecimal():
                    raise

    def restore_weights(self, abstract: TrainState, step: int) -> TrainState:
        """Restore only the weights, for evaluation: the optimizer's state is not read.

        Raises RemovedCheckpoint if they are removed meanwhile, UserError if their files are damaged
        or the code's arrays are different. That they cannot be verified is printed.
        """
        path = self.directory.absolute() / str(step)
        state, problem = run_on_first(lambda: integrity.check_item(path, "weights"))
        if state == "removed":
            raise integrity.RemovedCheckpoint(step)
        if state == "damaged":
            raise UserError(f"checkpoint {step} is damaged: {problem}; use another --checkpoint")
        if state == "unverified" and is_first():
            print(f"warning: {problem}", file=sys.stderr, flush=True)
        try:
            leaves.require_same(path / "weights", _weights(abstract))
            got = self._restore(step, weights=ocp.args.StandardRestore(_weights(abstract)))
        except Exception as e:  # the readers say many things of files that vanish
            # One of several processes cannot ask the others here: they may have read everything.
            if count() == 1 and integrity.is_being_removed(path):
                raise integrity.RemovedCheckpoint(step) from e
            raise
        return TrainState(
            step=jax.numpy.int32(step),
            params=got.weights["params"],
            batch_stats=got.weights["batch_stats"],
            opt_state=None,
            ema=got.weights.get("ema"),
        )

    def _restore(self, step: int, **args: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**args))
        except (ValueError, KeyError, FileNotFoundError) as e:
            raise UserError(
                f"checkpoint {self.directory / str(step)} cannot be restored: {one_line(e)}"
            ) from e

    def steps(self) -> list[int]:
        """Return the complete checkpoints, in ascending order, as the directory stands now.

        Every process must call it.
        """

        def read() -> list[int]:
            self._manager.reload()
            return sorted(self._manager.all_steps())

        return run_on_first(read)

    def find(self, which: str) -> int:
        """Return the step that "latest", "best" or a number names; UserError if there is none.

        Every process must call it.
        """
        return run_on_first(lambda: self._find(which))

    def _find(self, which: str) -> int:
        steps = self.steps()
        if not steps:
            raise UserError(f"no checkpoint in {self.directory}: train into this workdir first")
        if which == "latest":
            return steps[-1]
        if which == "best":
            best = self._manager.best_step()
            if best is None:
                raise UserError(
                    f"no checkpoint in {self.directory} was evaluated, so none is best; "
                    "use --checkpoint=latest"
                )
            if score(self._manager.metrics(best), self._metric) == -math.inf:
                raise UserError(
                    f"no checkpoint in {self.directory} has a finite {self._metric}, so none is "
                    "best; use --checkpoint=latest"
                )
            return best
        if not which.isdecimal() or int(which) not in steps:
            raise UserError(
                f"--checkpoint={which}: {self.directory} has {', '.join(map(str, steps))}, "
                "'latest' and 'best'"
            )
        return int(which)

    def wait(self) -> None:
        """Until everything saved is complete on disk, or has failed."""
        self._settle()

    def close(self) -> None:
        self._settle()
        self._manager.close()


def open_to_read(workdir: Path, config: ConfigDict) -> Checkpoints:
    """The checkpoints that a run of `config` left, or is leaving, in `workdir`."""
    directory, metric = workdir / "checkpoints", config.checkpoint.best_metric
    return Checkpoints(directory, metric=metric, write=False)


def _weights(state: TrainState) -> dict[str, Any]:
    tree = state.weights("raw")
    return tree if state.ema is None else tree | {"ema": state.ema}
