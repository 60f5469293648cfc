"""Saves checkpoints during training and reports failed saves without stopping."""

from typing import Any

from imagenet_jax.errors import UserError
from imagenet_jax.logs.recorder import Recorder
from imagenet_jax.runtime import processes
from imagenet_jax.training.checkpoint import Checkpoints, Position
from imagenet_jax.training.data_position import get_data_position
from imagenet_jax.training.experiment import Experiment
from imagenet_jax.training.rewind import Batches
from imagenet_jax.training.state import TrainState


class Saver:
    """Checkpoints that never know of a step that the recorder's files do not."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        recorder: Recorder,
        run: Experiment,
        batch_of: Batches,
        provenance: dict[str, Any],
    ):
        self._checkpoints, self._recorder = checkpoints, recorder
        self._run, self._batch_of, self._provenance = run, batch_of, provenance

    def save(self, state: TrainState, step: int, results: list[dict] | None) -> None:
        """Start saving the state after `step`; `results` are those of its evaluation.

        The state may be donated afterwards.
        """
        self._recorder.report(step)  # what is not finite is not saved
        self._start(state, step, results)

    def require(self, state: TrainState, step: int, results: list[dict] | None) -> None:
        """Wait for the save of `step`; where it failed try again, for the run ends with it.

        Raises UserError where it cannot be saved.
        """
        for attempt in range(2):
            if attempt:
                self._start(state, step, results)
            self._checkpoints.wait()
            self.tell_failures()
            kept = self._checkpoints.steps()
            if step in kept:
                return
        left = f"the newest checkpoint is of step {kept[-1]}" if kept else "there is no checkpoint"
        raise UserError(
            f"step {step} could not be saved in {self._checkpoints.directory}: {left}; make space "
            "and start the same command again"
        )

    def complete(self, step: int, results: list[dict], *, required: bool) -> None:
        """Give the checkpoint that an earlier start saved at `step` the results it lacks.

        If that fails, raises UserError if `required`; otherwise reports it.
        """
        if self._flush(step):
            self._checkpoints.add_metrics(step, _numbers(results[0]))
        self.tell_failures()
        if required and self._checkpoints.lacks_metrics(step):
            raise UserError(
                f"the evaluation of step {step} could not be saved in "
                f"{self._checkpoints.directory}; make space and start the same command again"
            )

    def tell_failures(self) -> None:
        for failure in self._checkpoints.failures():
            self._recorder.warn(failure)

    def _start(self, state: TrainState, step: int, results: list[dict] | None) -> None:
        if not self._flush(step):
            return
        data = get_data_position(self._run.sampler, self._batch_of.of_step(step) + 1)
        self._checkpoints.save(
            state,
            Position(data=data, interval=self._recorder.interval()),
            config=self._run.config.to_dict(),
            provenance=self._provenance,
            metrics=_numbers(results[0]) if results else None,
        )
        self._recorder.saving(step)

    def _flush(self, step: int) -> bool:
        """Return whether checkpoint `step` may be written: what it knows of is on disk."""
        try:
            self._recorder.flush()
        except OSError as e:
            self._recorder.warn(f"checkpoint {step} not saved, the metrics cannot be: {e.strerror}")
            return processes.count() > 1  # others have begun to save and would wait for this one
        return True


def _numbers(result: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in result.items() if isinstance(value, int | float)}
