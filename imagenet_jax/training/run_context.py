"""The run context protects a training run in its workdir, and lets it stop and continue."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagenet_jax import config as config_io
from imagenet_jax.progress import announce
from imagenet_jax.runtime import workdir as workdirs
from imagenet_jax.runtime import xla
from imagenet_jax.runtime.integrity import set_aside_damaged
from imagenet_jax.runtime.lock import Lock
from imagenet_jax.runtime.processes import StopAgreement, is_first, require_same, run_on_first
from imagenet_jax.runtime.provenance import SAME_IN_EVERY_PROCESS, collect_provenance
from imagenet_jax.runtime.stopping import StopRequested, StopSignal, Watchdog
from imagenet_jax.training.checkpoint import Checkpoints, Position
from imagenet_jax.training.data_position import (
    Rewind,
    check_rewinds,
    read_rewinds,
    record_rewind,
    resume_at,
)
from imagenet_jax.training.experiment import Experiment
from imagenet_jax.training.metric_window import NonFiniteError
from imagenet_jax.training.state import TrainState, create_state

if TYPE_CHECKING:
    from imagenet_jax.training.load_weights import InitialWeights


@dataclasses.dataclass(frozen=True)
class Start:
    """What training continues from.

    Attributes:
      run: the experiment from here on; its sampler and length depend on the position in the data.
      step: number of steps already trained; 0 for a new run.
      state: the state after that step.
      position: the position that was saved with the state.
      rewinds: rewinds of the run so far.
      warning: why the rest of the epoch cannot be trained exactly; "" if it can.
      origin: description of the weights that a new run starts from; "" if they are random.
    """

    run: Experiment
    step: int
    state: TrainState
    position: Position
    rewinds: list[Rewind]
    warning: str = ""
    origin: str = ""


class RunContext:
    """A context manager that is active while this process trains in the workdir.

    It locks the workdir, sets damaged checkpoints aside, caches compiled programs, records stop
    signals instead of letting them end the process, and runs the watchdog.

    Attributes:
      provenance: what the results of the run depend on besides the config.
      stop, watchdog, checkpoints: see their classes.
    """

    def __init__(
        self, run: Experiment, workdir: Path, *, strict_restore: bool = False, quiet: bool = False
    ):
        """Read the initial weights, and compare config and provenance across processes.

        With `strict_restore`, entering raises UserError if a checkpoint is damaged. With `quiet`,
        no progress is printed.

        Raises UserError if the initial weights do not fit, or the processes differ.
        """
        self._run, self.workdir, self._strict_restore = run, workdir, strict_restore
        self._quiet = quiet or not is_first()
        self.provenance = collect_provenance(run.fingerprints)
        self._initial = self._read_initial_weights()
        shared = {name: self.provenance.get(name) for name in SAME_IN_EVERY_PROCESS}
        require_same({"config": config_io.to_json(run.config)} | shared)
        self.stop = StopSignal()
        self.watchdog = Watchdog(run.config.log.watchdog_seconds)
        self._agree = StopAgreement(run.mesh)

    def _read_initial_weights(self) -> "InitialWeights | None":
        """Return the weights that `config.init.weights` names, if this is a new run."""
        config = self._run.config
        if workdirs.has_checkpoint(self.workdir) or not config.init.weights:
            return None
        from imagenet_jax.training.load_weights import read_initial_weights, require_its_classes

        initial = read_initial_weights(config)
        require_its_classes(initial, self._run.source)
        file = {"file": config.init.weights, "sha256": initial.sha256}
        self.provenance["initial_weights"] = file
        return initial

    def __enter__(self) -> "RunContext":
        checkpoint = self._run.config.checkpoint
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.stop)
            run_on_first(lambda: self._lock(stack))
            stack.enter_context(xla.keep_programs(self.workdir / "compiled"))
            self.checkpoints = Checkpoints(
                self.workdir / "checkpoints", keep=checkpoint.keep, metric=checkpoint.best_metric
            )
            stack.callback(self.checkpoints.close)
            stack.enter_context(self.watchdog)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _lock(self, stack: contextlib.ExitStack) -> None:
        stack.enter_context(Lock(self.workdir))
        workdirs.check_start(self.workdir, self._run.config, self.provenance)
        for note in set_aside_damaged(self.workdir, strict=self._strict_restore):
            print(note)

    def restore(self) -> Start:
        """Restore the last checkpoint, or create the initial state.

        Raises UserError if the checkpoint does not fit the config.
        """
        with announce("creating or restoring the state", quiet=self._quiet, stderr=False):
            return self._restore()

    def _restore(self) -> Start:
        run, rewinds = self._run, read_rewinds(self.workdir)
        config = run.config
        check_rewinds(rewinds, config.batch_size)
        if self.checkpoints.steps():
            step = self.checkpoints.find("latest")
            state, position = self.checkpoints.restore(run.abstract, step)
            run, warning = resume_at(run, position, step, rewinds)
            return Start(run, step, state, position, rewinds, warning)
        ema, origin = config.ema.decay > 0, ""
        state = create_state(config.model, run.parts.tx, ema, run.mesh, config.seed)
        if self._initial:
            from imagenet_jax.training.load_weights import start_from

            state = start_from(self._initial, state, run.parts.tx)
            origin = self._initial.summary
        return Start(run, 0, state, Position(data={}, interval={}), rewinds, origin=origin)

    def record_start(self) -> None:
        """Write the files that describe the run. Call it after all checks of the start."""
        run, workdir = self._run, self.workdir
        run_on_first(lambda: workdirs.record_start(workdir, run.config, self.provenance))
        run_on_first(lambda: workdirs.write_classes(workdir, run.source.class_names))

    def record_rewind(self, error: NonFiniteError) -> None:
        """Record that the run goes back to its last checkpoint and skips batches before `error`.

        Raises `error` if config.nonfinite allows no rewinds, or no more of them.
        """
        config = self._run.config
        if config.nonfinite.policy == "stop":
            raise error
        self.checkpoints.wait()
        last = max(self.checkpoints.steps(), default=0)
        run_on_first(lambda: record_rewind(self.workdir, error, last, config))

    def check_stop(self, count: int) -> None:
        """Raise StopRequested if the processes have agreed to stop.

        Every process must call this after each step and after each evaluation batch, with the
        number of the step or batch.
        """
        if number := self._agree(count, self.stop.received):
            raise StopRequested(number)

    def watch(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the batches of an evaluation. Raises StopRequested between two batches."""
        for count in itertools.count(1):
            with self.stop.interrupting():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
            self.watchdog.beat()
            self.check_stop(count)
