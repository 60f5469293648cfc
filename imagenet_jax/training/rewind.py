"""After a loss that is not finite: back to the last checkpoint, and past the batches before it.

`rewinds.json` in the workdir lists what was left out. Step s of a run trains on the s-th batch of
the order that is not in the list, so what a step does is a function of (config, seed, list), and a
run that is killed after a rewind continues alike. Chowdhery et al. 2022 (PaLM, section 5.1) went
back about 100 steps and skipped 200 to 500 batches.
"""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imagenet_jax.errors import UserError
from imagenet_jax.files import read_json, read_json_lines, write_json
from imagenet_jax.runtime.processes import run_on_first
from imagenet_jax.training.metrics import NonFiniteError

FILE = "rewinds.json"


@dataclasses.dataclass(frozen=True)
class Rewind:
    """One return to a checkpoint.

    Attributes:
      nonfinite_step: where something was not finite.
      checkpoint: step that training went back to; 0: the beginning.
      skipped_batches: (first, last) of the run's order, counted from 0, left out since.
      batch_size: of these batches.
    """

    nonfinite_step: int
    checkpoint: int
    skipped_batches: tuple[int, int]
    batch_size: int


class Batches:
    """Which batch each step trains on."""

    def __init__(self, rewinds: list[Rewind]):
        # Merged: a window may reach into one that was skipped before.
        self._skipped: list[tuple[int, int]] = []
        for first, last in sorted(rewind.skipped_batches for rewind in rewinds):
            if self._skipped and first <= self._skipped[-1][1] + 1:
                before = self._skipped.pop()
                first, last = before[0], max(before[1], last)
            self._skipped.append((first, last))

    def of_step(self, step: int) -> int:
        """The batch, counted from 0, of step `step`, counted from 1."""
        batch = step - 1
        for first, last in self._skipped:
            if batch >= first:
                batch += last - first + 1
        return batch

    def spans(self, done: int, total: int) -> list[tuple[int, int]]:
        """[start, stop) of the batches of steps done + 1 .. total, without what is skipped."""
        if done >= total:
            return []
        at, end = self.of_step(done + 1), self.of_step(total) + 1
        found = []
        for first, last in self._skipped:
            if at < first < end:
                found.append((at, first))
            if at <= last and first < end:
                at = max(at, last + 1)
        return [*found, (at, end)]


def next_rewind(
    rewinds: list[Rewind], nonfinite_step: int, checkpoint: int, skip_steps: int, batch_size: int
) -> Rewind:
    """Skip the `skip_steps` batches up to that of `nonfinite_step`, none before the checkpoint."""
    batches = Batches(rewinds)
    first_step = max(checkpoint, nonfinite_step - skip_steps) + 1
    window = (batches.of_step(first_step), batches.of_step(nonfinite_step))
    return Rewind(nonfinite_step, checkpoint, window, batch_size)


def read(workdir: Path) -> list[Rewind]:
    """Return the rewinds of a run so far, oldest first; every process must call it."""
    return [
        Rewind(nonfinite_step, checkpoint, (first, last), batch_size)
        for nonfinite_step, checkpoint, first, last, batch_size in run_on_first(
            lambda: _read(workdir / FILE)
        )
    ]


def require_size(rewinds: list[Rewind], batch_size: int) -> None:
    """Raise UserError if `rewinds` counts batches of another size than `batch_size`."""
    for rewind in rewinds:
        if rewind.batch_size != batch_size:
            raise UserError(
                f"config.batch_size = {batch_size}, but {FILE} counts batches of "
                f"{rewind.batch_size}; continue with --config.batch_size={rewind.batch_size}, or "
                "use another --workdir"
            )


def _read(path: Path) -> list[list[int]]:
    try:
        return [
            [int(entry["nonfinite_step"]), int(entry["checkpoint"])]
            + [int(entry["skipped_batches"][i]) for i in range(2)]
            + [int(entry["batch_size"])]
            for entry in read_json(path)
        ]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, IndexError, OSError) as e:
        raise UserError(
            f"{path} cannot be read ({e}), and says which batches to skip; use another --workdir"
        ) from e


def record(workdir: Path, error: NonFiniteError, checkpoint: int, config: ConfigDict) -> None:
    """Add to the list the rewind that answers `error`, as config.nonfinite has it.

    Raises NonFiniteError where there were as many as it allows, UserError where it cannot write.
    """
    rewinds, plan = read(workdir), config.nonfinite
    if len(rewinds) >= plan.max_rewinds:
        raise NonFiniteError(
            f"{error} (after {len(rewinds)} rewinds, config.nonfinite.max_rewinds)", error.step
        ) from error
    new = next_rewind(rewinds, error.step, checkpoint, plan.skip_steps, config.batch_size)
    try:
        write(workdir, [*rewinds, new])
    except OSError as e:
        raise UserError(f"{error}; {workdir / FILE} cannot be written: {e.strerror}") from e


def write(workdir: Path, rewinds: list[Rewind]) -> None:
    """Replace the list."""
    write_json(workdir / FILE, [dataclasses.asdict(rewind) for rewind in rewinds], indent=1)


def unrecorded(rewinds: list[Rewind], history: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl does not say yet, as values of lines of the split "rewind"."""
    lines = read_json_lines(history)
    known = sum(line["split"] == "rewind" for line in lines)
    return [dataclasses.asdict(rewind) for rewind in rewinds[known:]]
