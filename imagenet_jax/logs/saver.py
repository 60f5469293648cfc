"""The saver: writes checkpoints during training and reports failed saves without stopping."""

from typing import Any

from imagenet_jax.errors import UserError
from imagenet_jax.logs.recorder import Recorder
from imagenet_jax.runtime import processes
from imagenet_jax.training.checkpoint import Checkpoints, Position
from imagenet_jax.training.data_position import BatchOrder, get_data_position
from imagenet_jax.training.experiment import Experiment
from imagenet_jax.training.state import TrainState


class Saver:
    """Saves a checkpoint only after everything recorded up to its step is on disk."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        recorder: Recorder,
        run: Experiment,
        batch_order: BatchOrder,
        provenance: dict[str, Any],
    ):
        self._checkpoints, self._recorder = checkpoints, recorder
        self._run, self._batch_order, self._provenance = run, batch_order, provenance

    def save(
        self, state: TrainState, step: int, results: list[dict] | None, *, required: bool
    ) -> None:
        """Start saving the state after `step`, which may be donated afterwards.

        Args:
          results: of the evaluation of the state, to rank the checkpoint by.
          required: wait until it is saved, and try again if that fails.

        Raises NonFiniteError if a metric up to `step` is not finite, and UserError if a required
        save fails twice.
        """
        self._recorder.report(step)
        self._start(state, step, results)
        if not required:
            return
        if step not in self._wait():
            self._start(state, step, results)
            kept = self._wait()
            if step not in kept:
                newest = f"the newest checkpoint is of step {kept[-1]}" if kept else None
                raise UserError(
                    f"step {step} could not be saved in {self._checkpoints.directory}: "
                    f"{newest or 'there is no checkpoint'}; make space and start the same command "
                    "again"
                )

    def add_results(self, step: int, results: list[dict], *, required: bool) -> None:
        """Add evaluation results to the checkpoint that an earlier start saved at `step`.

        If that fails, raises UserError if `required`; otherwise reports it.
        """
        if self._flush(step):
            self._checkpoints.add_metrics(step, _select_numbers(results[0]))
        self.report_failures()
        if required and self._checkpoints.lacks_metrics(step):
            raise UserError(
                f"the evaluation of step {step} could not be saved in "
                f"{self._checkpoints.directory}; make space and start the same command again"
            )

    def report_failures(self) -> None:
        """Print a line for each save that has failed since the last call."""
        for failure in self._checkpoints.failures():
            self._recorder.warn(failure)

    def _start(self, state: TrainState, step: int, results: list[dict] | None) -> None:
        if not self._flush(step):
            return
        data = get_data_position(self._run.sampler, self._batch_order.batch_at(step) + 1)
        self._checkpoints.save(
            state,
            Position(data=data, interval=self._recorder.interval()),
            config=self._run.config.to_dict(),
            provenance=self._provenance,
            metrics=_select_numbers(results[0]) if results else None,
        )
        self._recorder.saving(step)

    def _wait(self) -> list[int]:
        """Wait for the save in progress, report failures and return the steps that are saved."""
        self._checkpoints.wait()
        self.report_failures()
        return self._checkpoints.steps()

    def _flush(self, step: int) -> bool:
        """Flush the recorder's files; return whether checkpoint `step` may be written."""
        try:
            self._recorder.flush()
        except OSError as e:
            self._recorder.warn(
                f"checkpoint {step} not saved, because metrics.jsonl cannot be: {e.strerror}"
            )
            # The other processes have started to save and would wait for this one.
            return processes.count() > 1
        return True


def _select_numbers(result: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in result.items() if isinstance(value, int | float)}
