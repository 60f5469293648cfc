"""The position of a run in its data: batches skipped after a NaN, and changes of the batch size.

Step s of a run trains on batch s of its data order, not counting batches that `rewinds.json` skips.
After a NaN or infinite loss, a run can rewind: it adds the batches before the failure to that file
and continues from its last checkpoint. A step is therefore a function of config, seed and that
file, and a run that is killed after a rewind continues the same way. Chowdhery et al. 2022 (PaLM,
section 5.1) went back about 100 steps and skipped 200 to 500 batches.
"""

import dataclasses
import decimal
import itertools
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imagenet_jax.data.sampler import Sampler
from imagenet_jax.errors import UserError
from imagenet_jax.files import read_json, read_json_lines, write_json
from imagenet_jax.runtime.processes import run_on_first
from imagenet_jax.training.checkpoint import Position
from imagenet_jax.training.experiment import Experiment
from imagenet_jax.training.metric_window import NonFiniteError

REWINDS_FILE = "rewinds.json"


@dataclasses.dataclass(frozen=True)
class Rewind:
    """One return to a checkpoint.

    Attributes:
      nonfinite_step: the step whose loss, gradient or parameters were not finite.
      checkpoint: the step that training went back to; 0: the start.
      skipped_batches: (first, last) batch to skip, counted from 0 in the run's data order.
      batch_size: size of these batches.
    """

    nonfinite_step: int
    checkpoint: int
    skipped_batches: tuple[int, int]
    batch_size: int


class BatchOrder:
    """Maps steps to batches, leaving out the skipped ones."""

    def __init__(self, rewinds: list[Rewind]):
        windows = (range(first, last + 1) for first, last in (r.skipped_batches for r in rewinds))
        self._skipped = sorted(set().union(*windows))

    def batch_at(self, step: int) -> int:
        """Return the batch (counted from 0) of a step (counted from 1)."""
        batch = step - 1
        for skipped in self._skipped:
            batch += skipped <= batch
        return batch

    def ranges(self, done: int, total: int) -> list[tuple[int, int]]:
        """Return the [start, stop) ranges of the batches of steps done + 1 .. total."""
        if done >= total:
            return []
        start, stop = self.batch_at(done + 1), self.batch_at(total) + 1
        left_out = [batch for batch in self._skipped if start <= batch < stop]
        pairs = itertools.pairwise([start - 1, *left_out, stop])
        return [(before + 1, after) for before, after in pairs if before + 1 < after]


def plan_rewind(
    rewinds: list[Rewind], nonfinite_step: int, checkpoint: int, skip_steps: int, batch_size: int
) -> Rewind:
    """Return the rewind that skips `skip_steps` batches up to that of `nonfinite_step`.

    Batches before the checkpoint are not skipped.
    """
    order = BatchOrder(rewinds)
    first_step = max(checkpoint, nonfinite_step - skip_steps) + 1
    window = (order.batch_at(first_step), order.batch_at(nonfinite_step))
    return Rewind(nonfinite_step, checkpoint, window, batch_size)


def read_rewinds(workdir: Path) -> list[Rewind]:
    """Return the rewinds of a run, oldest first. Every process must call this."""
    path = workdir / REWINDS_FILE
    try:
        entries = run_on_first(lambda: read_json(path) if path.exists() else [])
        return [Rewind(**e | {"skipped_batches": tuple(e["skipped_batches"])}) for e in entries]
    except (ValueError, KeyError, TypeError, OSError) as e:
        raise UserError(
            f"{path} cannot be read ({e}), and it lists the batches to skip; use another --workdir"
        ) from e


def check_rewinds(rewinds: list[Rewind], batch_size: int) -> None:
    """Raise UserError if `rewinds` counts batches of a size other than `batch_size`."""
    for rewind in rewinds:
        if rewind.batch_size != batch_size:
            raise UserError(
                f"config.batch_size = {batch_size}, but {REWINDS_FILE} counts batches of "
                f"{rewind.batch_size}; continue with --config.batch_size={rewind.batch_size}, or "
                "use another --workdir"
            )


def record_rewind(
    workdir: Path, error: NonFiniteError, checkpoint: int, config: ConfigDict
) -> None:
    """Add a rewind from `error` to `checkpoint` to the file, according to `config.nonfinite`.

    Raises NonFiniteError if there are config.nonfinite.max_rewinds already, and UserError if the
    file cannot be written.
    """
    rewinds, settings = read_rewinds(workdir), config.nonfinite
    if len(rewinds) >= settings.max_rewinds:
        raise NonFiniteError(
            f"{error} (after {len(rewinds)} rewinds, config.nonfinite.max_rewinds)", error.step
        ) from error
    new = plan_rewind(rewinds, error.step, checkpoint, settings.skip_steps, config.batch_size)
    try:
        write_rewinds(workdir, [*rewinds, new])
    except OSError as e:
        raise UserError(f"{error}; {workdir / REWINDS_FILE} cannot be written: {e.strerror}") from e


def write_rewinds(workdir: Path, rewinds: list[Rewind]) -> None:
    """Write `rewinds.json`."""
    write_json(workdir / REWINDS_FILE, [dataclasses.asdict(rewind) for rewind in rewinds], indent=1)


def find_unrecorded_rewinds(rewinds: list[Rewind], history: Path) -> list[dict[str, Any]]:
    """Return the rewinds that are missing in metrics.jsonl, as the values of its lines."""
    lines = read_json_lines(history)
    known = sum(line["split"] == "rewind" for line in lines)
    return [dataclasses.asdict(rewind) for rewind in rewinds[known:]]


# What the order of the records in an epoch depends on.
_ORDER = ("seed", "repeats", "balance", "length")


def get_data_position(sampler: Sampler, batch: int) -> dict[str, Any]:
    """Return the position that a checkpoint stores if `batch` is the next batch of the run.

    "next_record" is the number of records that the run has trained on or skipped.
    """
    names = (*_ORDER, "batch_size", "records_per_epoch")
    own = {name: getattr(sampler, name) for name in names}
    return {"next_record": batch * sampler.batch_size + sampler.shift} | own


def resume_at(
    run: Experiment, position: Position, step: int, rewinds: list[Rewind]
) -> tuple[Experiment, str]:
    """Return `run`, continued after `step` at `position`, and a warning or "".

    The next batch starts at the first record that was not trained on. Total steps, epochs and
    schedules are counted in records. The warning says that the order of the current epoch changed,
    so that some of its records are used twice and others not at all.

    Raises UserError if the batch size changed at a position where the remaining records are not
    known exactly, or if config.epochs is less than what is already trained.
    """
    saved, sampler = position.data, run.sampler
    if "next_record" not in saved:
        raise UserError(
            f"checkpoint {step} was saved by a version that counts batches instead of records; "
            "continue with the code that saved it (provenance.json has its git_revision)"
        )
    size, per_epoch = saved["batch_size"], saved["records_per_epoch"]
    epoch, done = divmod(saved["next_record"], per_epoch)
    target, exact = saved["next_record"], _is_same_order(saved, sampler)
    if size != sampler.batch_size:
        _require_exact(sampler, epoch, done, size)
    if per_epoch != sampler.records_per_epoch:
        exact = exact and sampler.drops and done % sampler.batch_size == 0
        part = done if exact else round(done / per_epoch * sampler.records_per_epoch)
        target = epoch * sampler.records_per_epoch + part
    if sampler.drops or sampler.repeats > 1:  # these need whole batches
        target -= target % sampler.batch_size
    next_batch = BatchOrder(rewinds).batch_at(step) + 1
    shift = target - next_batch * sampler.batch_size
    if shift:
        run = run.with_sampler(sampler.shifted(shift))
    if run.total_steps < step:
        # The last batch may extend beyond the end.
        if target - size >= run.config.epochs * sampler.records_per_epoch:
            trained = saved["next_record"] / per_epoch
            suggested = _suggest_epochs(target, size, sampler)
            raise UserError(
                f"config.epochs = {run.config.epochs:g} is less than the {trained:.4g} epochs that "
                f"this run has trained (step {step}); use --config.epochs={suggested} or more, or "
                "another --workdir"
            )
        run = dataclasses.replace(run, total_steps=step)
    warning = (
        f"the order of the images changed within epoch {epoch + 1}: some of its images are used "
        "twice, others not at all"
    )
    return run, "" if exact or not done else warning


def _suggest_epochs(target: int, size: int, sampler: Sampler) -> str:
    """Return config.epochs, as text, of a run whose last batch of `size` records ends at `target`.

    It is rounded up, because with fewer records, the run could end before that batch.
    """
    context = decimal.Context(prec=6, rounding=decimal.ROUND_CEILING)
    epochs = context.divide(decimal.Decimal(2 * target - size), 2 * sampler.records_per_epoch)
    return f"{epochs:f}"


def _is_same_order(saved: dict[str, Any], sampler: Sampler) -> bool:
    now = {name: getattr(sampler, name) for name in _ORDER}
    return all(saved.get(name, value) == value for name, value in now.items())


def _require_exact(sampler: Sampler, epoch: int, done: int, size: int) -> None:
    """Raise UserError if changing the batch size from `size` here would repeat or skip records."""
    trained = f"epoch {epoch + 1} has trained"
    if sampler.repeats > 1:
        reason = f"with config.data.repeated_aug = {sampler.repeats} a run "
        if done:
            reason += f"cannot change it within an epoch ({trained} {done:,} records)"
        elif epoch * sampler.records_per_epoch % sampler.batch_size:
            reason += f"can change it only where a batch of {sampler.batch_size} begins"
        else:
            return
    elif sampler.drops and done % sampler.batch_size:
        reason = (
            f"with config.data.remainder = 'drop' the {done:,} records that {trained} must be "
            f"whole batches of {sampler.batch_size}"
        )
    else:
        return
    raise UserError(
        f"config.batch_size: {size} -> {sampler.batch_size}: {reason}; continue with "
        f"--config.batch_size={size}, or use another --workdir"
    )
