"""The position of a run in its data, which also fits after the batch size has changed."""

import dataclasses
import decimal
from typing import Any

from imagenet_jax.data.sampler import Sampler
from imagenet_jax.errors import UserError
from imagenet_jax.training import rewind
from imagenet_jax.training.checkpoint import Position
from imagenet_jax.training.experiment import Experiment


def get_data_position(sampler: Sampler, batch: int) -> dict[str, Any]:
    """Return the position that a checkpoint stores if `batch` is the next batch of the run.

    "next_record": number of records of the whole run that were trained on or skipped.
    """
    return {
        "next_record": batch * sampler.batch_size + sampler.shift,
        "records_per_epoch": sampler.records_per_epoch,
        "length": sampler.length,
        "batch_size": sampler.batch_size,
        "repeats": sampler.repeats,
        "balance": sampler.balance,
        "seed": sampler.seed,
    }


def resume_at(
    run: Experiment, position: Position, step: int, rewinds: list[rewind.Rewind]
) -> tuple[Experiment, str]:
    """Return `run` continued after `step` at `position`, and a warning, "" if there is none.

    The next batch starts at the first record that was not trained on. Total steps, epochs and
    schedules follow the records. The warning says that the order of an epoch in progress changed,
    so that some of its records are used twice and others not at all.

    Raises UserError if the batch size changed at a position where the remaining records are not
    known exactly, and if config.epochs is less than what is already trained.
    """
    saved, sampler = position.data, run.sampler
    if "next_record" not in saved:
        raise UserError(
            f"checkpoint {step} was saved by a version that counts batches instead of records; "
            "continue with the code that saved it (provenance.json has its git_revision)"
        )
    size, per_epoch = saved["batch_size"], saved["records_per_epoch"]
    epoch, done = divmod(saved["next_record"], per_epoch)
    target, exact = saved["next_record"], True
    if size != sampler.batch_size:
        _require_exact(sampler, epoch, done, size)
    if per_epoch != sampler.records_per_epoch:
        exact = sampler.drops and done % sampler.batch_size == 0 and _is_same_order(saved, sampler)
        part = done if exact else round(done / per_epoch * sampler.records_per_epoch)
        target = epoch * sampler.records_per_epoch + part
    elif not _is_same_order(saved, sampler):
        exact = False
    if sampler.drops or sampler.repeats > 1:  # they work only with whole batches
        target -= target % sampler.batch_size
    next_batch = rewind.BatchOrder(rewinds).batch_at(step) + 1
    shift = target - next_batch * sampler.batch_size
    if shift:
        run = run.with_sampler(sampler.shifted(shift))
    end = run.config.epochs * sampler.records_per_epoch
    if run.total_steps < step:
        # The last batch may extend beyond the end.
        if target - size >= end:
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
    """Return as text the epochs that end in the last batch, which has `size` records.

    The batch ends at record `target`. Rounding is upward: a few records less might end before it.
    """
    context = decimal.Context(prec=6, rounding=decimal.ROUND_CEILING)
    epochs = context.divide(decimal.Decimal(2 * target - size), 2 * sampler.records_per_epoch)
    return f"{epochs:f}"


def _is_same_order(saved: dict[str, Any], sampler: Sampler) -> bool:
    now = get_data_position(sampler, 0)
    return all(
        saved.get(name, now[name]) == now[name] for name in ("seed", "repeats", "balance", "length")
    )


def _require_exact(sampler: Sampler, epoch: int, done: int, size: int) -> None:
    """Raise UserError if a change from batches of `size` would repeat or skip records."""
    change = f"config.batch_size: {size} -> {sampler.batch_size}"
    back = f"continue with --config.batch_size={size}, or use another --workdir"
    if not done:
        if sampler.repeats > 1 and epoch * sampler.records_per_epoch % sampler.batch_size:
            raise UserError(
                f"{change}: with config.data.repeated_aug = {sampler.repeats} a run can change it "
                f"only where a batch of {sampler.batch_size} begins; {back}"
            )
        return
    if sampler.repeats > 1:
        raise UserError(
            f"{change}: with config.data.repeated_aug = {sampler.repeats} a run cannot change it "
            f"within an epoch (epoch {epoch + 1} has trained {done:,} records); {back}"
        )
    if sampler.drops and done % sampler.batch_size:
        raise UserError(
            f"{change}: with config.data.remainder = 'drop' the {done:,} records that epoch "
            f"{epoch + 1} has trained must be whole batches of {sampler.batch_size}; {back}"
        )
