"""Rewinds: after a NaN or infinite loss, continue from the last checkpoint and skip some batches.

`rewinds.json` in the workdir lists the skipped batches. Step s of a run trains on the s-th batch of
the data order that is not in the list. What a step does is thus a function of (config, seed, list),
and a run that is killed after a rewind continues in the same way. Chowdhery et al. 2022 (PaLM,
section 5.1) went back about 100 steps and skipped 200 to 500 batches.
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
      nonfinite_step: the step whose loss, gradient or parameters were not finite.
      checkpoint: the step that training went back to; 0: the start.
      skipped_batches: (first, last) batch that is skipped since then, in the run's data order,
        counted from 0.
      batch_size: of these batches.
    """

    nonfinite_step: int
    checkpoint: int
    skipped_batches: tuple[int, int]
    batch_size: int


class BatchOrder:
    """The batch that each step trains on, without the skipped ones."""

    def __init__(self, rewinds: list[Rewind]):
        # Merge windows: one may extend into another.
        self._skipped: list[tuple[int, int]] = []
        for first, last in sorted(rewind.skipped_batches for rewind in rewinds):
            if self._skipped and first <= self._skipped[-1][1] + 1:
                before = self._skipped.pop()
                first, last = before[0], max(before[1], last)
            self._skipped.append((first, last))

    def batch_at(self, step: int) -> int:
        """Return the batch, counted from 0, of a step, counted from 1."""
        batch = step - 1
        for first, last in self._skipped:
            if batch >= first:
                batch += last - first + 1
        return batch

    def ranges(self, done: int, total: int) -> list[tuple[int, int]]:
        """Return the [start, stop) ranges of the batches of steps done + 1 .. total."""
        if done >= total:
            return []
        start, end = self.batch_at(done + 1), self.batch_at(total) + 1
        found = []
        for first, last in self._skipped:
            if start < first < end:
                found.append((start, first))
            if start <= last and first < end:
                start = max(start, last + 1)
        return [*found, (start, end)]


def plan(
    rewinds: list[Rewind], nonfinite_step: int, checkpoint: int, skip_steps: int, batch_size: int
) -> Rewind:
    """Return the rewind that skips the `skip_steps` batches up to that of `nonfinite_step`.

    Batches before the checkpoint are not skipped.
    """
    order = BatchOrder(rewinds)
    first_step = max(checkpoint, nonfinite_step - skip_steps) + 1
    window = (order.batch_at(first_step), order.batch_at(nonfinite_step))
    return Rewind(nonfinite_step, checkpoint, window, batch_size)


def read(workdir: Path) -> list[Rewind]:
    """Return the rewinds of a run so far, oldest first. Every process must call it."""
    path = workdir / FILE

    def read_entries() -> list[dict[str, Any]]:
        try:
            return [dataclasses.asdict(_parse(entry)) for entry in read_json(path)]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError, IndexError, OSError) as e:
            raise UserError(
                f"{path} cannot be read ({e}), and it lists the batches to skip; use another "
                "--workdir"
            ) from e

    return [_parse(entry) for entry in run_on_first(read_entries)]


def _parse(entry: dict[str, Any]) -> Rewind:
    window = (int(entry["skipped_batches"][0]), int(entry["skipped_batches"][1]))
    step, checkpoint = int(entry["nonfinite_step"]), int(entry["checkpoint"])
    return Rewind(step, checkpoint, window, int(entry["batch_size"]))


def check_batch_size(rewinds: list[Rewind], batch_size: int) -> None:
    """Raise UserError if `rewinds` counts batches of another size than `batch_size`."""
    for rewind in rewinds:
        if rewind.batch_size != batch_size:
            raise UserError(
                f"config.batch_size = {batch_size}, but {FILE} counts batches of "
                f"{rewind.batch_size}; continue with --config.batch_size={rewind.batch_size}, or "
                "use another --workdir"
            )


def record(workdir: Path, error: NonFiniteError, checkpoint: int, config: ConfigDict) -> None:
    """Add a rewind from `error` to `checkpoint` to the list, as `config.nonfinite` says.

    Raises NonFiniteError after config.nonfinite.max_rewinds of them, and UserError if the list
    cannot be written.
    """
    rewinds, settings = read(workdir), config.nonfinite
    if len(rewinds) >= settings.max_rewinds:
        raise NonFiniteError(
            f"{error} (after {len(rewinds)} rewinds, config.nonfinite.max_rewinds)", error.step
        ) from error
    new = plan(rewinds, error.step, checkpoint, settings.skip_steps, config.batch_size)
    try:
        write(workdir, [*rewinds, new])
    except OSError as e:
        raise UserError(f"{error}; {workdir / FILE} cannot be written: {e.strerror}") from e


def write(workdir: Path, rewinds: list[Rewind]) -> None:
    """Write the list of rewinds."""
    write_json(workdir / FILE, [dataclasses.asdict(rewind) for rewind in rewinds], indent=1)


def find_unrecorded(rewinds: list[Rewind], history: Path) -> list[dict[str, Any]]:
    """Return the rewinds that metrics.jsonl lacks, as values of lines with split "rewind"."""
    lines = read_json_lines(history)
    known = sum(line["split"] == "rewind" for line in lines)
    return [dataclasses.asdict(rewind) for rewind in rewinds[known:]]
