"""Saving and restoring checkpoints with Orbax.

`checkpoints/STEP/` has a directory for each item, and `checksums.json` (integrity.py). One rename
commits all of them:
  weights     params, batch_stats and ema: everything that evaluation needs
  optimizer   step and opt_state
  position    JSON: position in the data, and sums of the unfinished logging interval
  config, provenance   JSON
  metrics     JSON, if the step was evaluated
"""

import contextlib
import dataclasses
import functools
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from imagenet_jax.errors import UserError, one_line
from imagenet_jax.files import dump_json, encode_nonfinite
from imagenet_jax.runtime import integrity
from imagenet_jax.runtime.processes import count, is_first, run_on_first
from imagenet_jax.training import checkpoint_errors
from imagenet_jax.training.metrics import score
from imagenet_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Position:
    """The progress of a run that is not in its TrainState.

    Attributes:
      data: number of records trained on, and what their order depends on (data_position.py).
      interval: sums of the unfinished logging interval (metric_window.Interval as a dict).
    """

    data: dict[str, Any]
    interval: dict[str, Any]


class Checkpoints:
    """The checkpoints of a workdir. Files are written in the background.

    In a run with several processes, every process must call each method.
    """

    def __init__(self, directory: Path, *, keep: int = 1, metric: str = "top1", write: bool = True):
        """Open `directory`. Keep the last `keep` checkpoints and the best one by `metric`.

        With `write=False`, checkpoints can only be read.
        """
        self.directory = directory
        self._keep, self._metric, self._write = keep, metric, write
        self._saving: int | None = None
        self._failures: list[str] = []
        try:
            self._manager = self._open(create=write)
        except ValueError as e:  # the metrics of a checkpoint are not JSON
            raise UserError(f"a checkpoint in {directory} is damaged: {one_line(e)}") from e
        except OSError as e:
            raise UserError(f"{directory} cannot be opened: {e.strerror}") from e

    def _open(self, *, create: bool) -> ocp.CheckpointManager:
        by_metric = functools.partial(score, name=self._metric)
        best = checkpoint_managers.BestN(
            get_metric_fn=by_metric, n=1, keep_checkpoints_without_metrics=False
        )
        latest = checkpoint_managers.LatestN(self._keep)
        options = ocp.CheckpointManagerOptions(
            best_fn=by_metric,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy([latest, best]),
            create=create,
            read_only=not self._write,
            # Remove incomplete checkpoints of killed processes. Complete ones are never removed.
            cleanup_tmp_directories=create,
            async_options=ocp.AsyncOptions(
                # Runs in the writing thread, after all files are written and before the commit.
                post_finalization_callback=self._write_checksums,
                # Asynchronous creation waits for 20 minutes if it cannot create a directory.
                create_directories_asynchronously=False,
            ),
        )
        return ocp.CheckpointManager(self.directory.absolute(), options=options)

    def _write_checksums(self) -> None:
        if is_first():
            # Orbax's name for a checkpoint that is not committed.
            (part,) = self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*")
            integrity.write_checksums(part)

    def save(
        self,
        state: TrainState,
        position: Position,
        *,
        config: dict[str, Any],
        provenance: dict[str, Any],
        metrics: dict[str, float] | None,
    ) -> None:
        """Start saving a checkpoint. The state may be donated as soon as this returns.

        Errors such as a full or read-only disk are not raised: `failures` reports them, and earlier
        checkpoints are kept.
        """
        step, optimizer = int(state.step), {"step": state.step, "opt_state": state.opt_state}
        self.wait()
        if run_on_first(lambda: step in self._manager.all_steps()):
            return
        self._saving = step
        self._remove_incomplete()
        try:
            if count() == 1:  # with several processes, the others would wait for one that raises
                size = sum(x.nbytes for x in jax.tree.leaves(state))
                checkpoint_errors.require_space(self.directory, size)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    weights=ocp.args.StandardSave(weights_tree(state)),
                    optimizer=ocp.args.StandardSave(optimizer),
                    position=ocp.args.JsonSave(dataclasses.asdict(position)),
                    config=ocp.args.JsonSave(config),
                    provenance=ocp.args.JsonSave(provenance),
                ),
                metrics=None if metrics is None else encode_nonfinite(metrics),
                force=True,  # save at any step
            )
        except (OSError, ValueError) as e:  # tensorstore raises ValueError
            self._abandon(e)

    def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Add metrics to checkpoint `step` if it has none. `failures` reports errors."""
        self.wait()

        def write() -> None:
            directory = self.directory / str(step)
            part = directory / ".metrics"
            try:
                part.mkdir(exist_ok=True)
                (part / "metrics").write_text(dump_json(metrics))  # as orbax does
                part.rename(directory / "metrics")
                integrity.add_checksum(directory, "metrics/metrics")
            except OSError as e:
                for written in (part, directory / "metrics"):
                    shutil.rmtree(written, ignore_errors=True)
                reason = checkpoint_errors.describe(e)
                self._failures.append(f"checkpoint {step} could not get its metrics: {reason}")

        if self.lacks_metrics(step):
            run_on_first(write)
            self._manager.reload()

    def lacks_metrics(self, step: int) -> bool:
        """Return whether checkpoint `step` exists and has no metrics."""
        manager = self._manager
        return run_on_first(lambda: step in manager.all_steps() and manager.metrics(step) is None)

    def wait(self) -> None:
        """Wait until the save in progress is complete or has failed."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as e:
            self._abandon(e)

    def close(self) -> None:
        self.wait()
        self._manager.close()

    def _abandon(self, error: Exception) -> None:
        """Record a failed save, remove its files, and open a new manager."""
        reason = checkpoint_errors.describe(error)
        self._failures.append(f"checkpoint {self._saving} could not be saved: {reason}")
        # The old manager would raise errors of its other threads at the next save, and has already
        # dropped the checkpoints that the failed one was to replace. Each call of `close` raises
        # one of these errors.
        for _ in range(4):
            with contextlib.suppress(OSError, ValueError):
                self._manager.close()
                break
        self._remove_incomplete()
        self._manager = self._open(create=False)

    def _remove_incomplete(self) -> None:
        """Remove files of failed saves, including those that their threads wrote afterwards."""
        if is_first():
            for part in self.directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(part, ignore_errors=True)

    def failures(self) -> list[str]:
        """Return a line for each save that failed since the last call. Does not wait for saves."""
        if count() == 1 and not self._manager.is_saving_in_progress():
            self.wait()
        failures, self._failures = self._failures, []
        return failures

    def restore(self, abstract: TrainState, step: int) -> tuple[TrainState, Position]:
        """Return the state at `step`, with the shardings of `abstract`, and the position.

        Files are not verified here, because `integrity.set_aside_damaged` has verified them.

        Raises UserError, naming the arrays, if the checkpoint has different arrays than `abstract`.
        """
        optimizer = {"step": abstract.step, "opt_state": abstract.opt_state}
        trees = {"weights": weights_tree(abstract), "optimizer": optimizer}
        got = self._restore(step, trees, position=ocp.args.JsonRestore())
        state = make_state(got.optimizer["step"], got.weights, got.optimizer["opt_state"])
        return state, Position(**run_on_first(lambda: got.position))

    def _restore(self, step: int, trees: dict[str, Any], **others: Any) -> Any:
        """Restore `trees` of abstract arrays with shardings, and `others`, given as Orbax args."""
        path = self.directory.absolute() / str(step)
        for item, tree in trees.items():
            checkpoint_errors.require_same_arrays(path / item, tree)
        arrays = {item: ocp.args.StandardRestore(tree) for item, tree in trees.items()}
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**arrays, **others))
        except (ValueError, KeyError, FileNotFoundError) as e:
            raise UserError(
                f"checkpoint {self.directory / str(step)} cannot be restored: {one_line(e)}"
            ) from e

    def steps(self) -> list[int]:
        """Return the steps of complete checkpoints in ascending order, read from the directory."""

        def read() -> list[int]:
            self._manager.reload()
            return sorted(self._manager.all_steps())

        return run_on_first(read)

    def find(self, which: str) -> int:
        """Return the step of the checkpoint `which`: "latest", "best" or a number.

        Raises UserError if there is none.
        """

        def find_step() -> int:
            if not (steps := self.steps()):
                raise UserError(f"no checkpoint in {self.directory}: train into this workdir first")
            if which == "latest":
                return steps[-1]
            if which == "best":
                best = self._manager.best_step()
                if best is None:
                    found = "was evaluated"
                elif score(self._manager.metrics(best), self._metric) == -math.inf:
                    found = f"has a finite {self._metric}"
                else:
                    return best
                raise UserError(
                    f"no checkpoint in {self.directory} {found}, so none is best; use "
                    "--checkpoint=latest"
                )
            if not which.isdecimal() or int(which) not in steps:
                raise UserError(
                    f"--checkpoint={which}: {self.directory} has {', '.join(map(str, steps))}, "
                    "'latest' and 'best'"
                )
            return int(which)

        return run_on_first(find_step)

    def find_several(self, which: str, count: int) -> list[int]:
        """Return the steps of the `count` latest or best checkpoints, in ascending order.

        Raises UserError if `which` is neither "latest" nor "best", or if there are too few.
        """

        def find_steps() -> list[int]:
            steps, kind = self.steps(), "checkpoints"
            if which == "best":
                scores = {s: score(self._manager.metrics(s) or {}, self._metric) for s in steps}
                steps = sorted((s for s in steps if scores[s] > -math.inf), key=scores.__getitem__)
                kind = f"checkpoints with a finite {self._metric}"
            elif which != "latest":
                raise UserError(f"--checkpoint={which}: to average several, use 'latest' or 'best'")
            if len(steps) < count:
                raise UserError(
                    f"{self.directory} has {len(steps)} {kind}, fewer than {count}; "
                    "config.checkpoint.keep sets how many a run keeps"
                )
            return sorted(steps[-count:])

        return run_on_first(find_steps)


def weights_tree(state: TrainState) -> dict[str, Any]:
    """Return the content of the checkpoint item "weights" for `state`."""
    tree = state.weights("raw")
    return tree if state.ema is None else tree | {"ema": state.ema}


def make_state(step: jax.Array, weights: dict[str, Any], opt_state: Any) -> TrainState:
    """Return the state with the content of the checkpoint item "weights"."""
    params, batch_stats = weights["params"], weights["batch_stats"]
    return TrainState(step, params, batch_stats, opt_state, weights.get("ema"))
