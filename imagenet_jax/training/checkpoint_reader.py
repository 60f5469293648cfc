"""Reading checkpoints of a finished or running training, for evaluation and other commands."""

import sys
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from imagenet_jax.errors import UserError
from imagenet_jax.runtime import integrity
from imagenet_jax.runtime.processes import count, is_first, run_on_first
from imagenet_jax.training import checkpoint_errors
from imagenet_jax.training.checkpoint import Checkpoints, make_state, weights_tree
from imagenet_jax.training.state import TrainState


class CheckpointReader(Checkpoints):
    """Checkpoints that another process may add and remove while they are read."""

    def __init__(self, directory: Path, metric: str = "top1"):
        super().__init__(directory, metric=metric, write=False)

    def restore_chosen(self, abstract: TrainState, which: str) -> tuple[TrainState, int]:
        """Return the state of "latest", "best" or a step as `restore_weights` does, and its step.

        If a run removes the latest or best checkpoint meanwhile, it is chosen again.
        """
        while True:
            step = self.find(which)
            try:
                return self.restore_weights(abstract, step), step
            except integrity.RemovedCheckpoint:
                if which.isdecimal():
                    raise

    def restore_weights(self, abstract: TrainState, step: int) -> TrainState:
        """Return the state at `step` without the optimizer's state, for evaluation.

        Raises RemovedCheckpoint if the checkpoint is removed meanwhile, and UserError if its files
        are damaged or it has different arrays. Prints a warning if it cannot be verified.
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
            checkpoint_errors.require_same_arrays(path / "weights", weights_tree(abstract))
            got = self._restore(step, weights=ocp.args.StandardRestore(weights_tree(abstract)))
        except Exception as e:  # readers raise many errors if files vanish
            # In a run of several processes, the others may have read everything.
            if count() == 1 and integrity.is_being_removed(path):
                raise integrity.RemovedCheckpoint(step) from e
            raise
        return make_state(jax.numpy.int32(step), got.weights, None)


def open_to_read(workdir: Path, config: ConfigDict) -> CheckpointReader:
    """Return the checkpoints of a run of `config` in `workdir`."""
    return CheckpointReader(workdir / "checkpoints", config.checkpoint.best_metric)
