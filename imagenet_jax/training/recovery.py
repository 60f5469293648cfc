"""What a run continues from after kills and damage: the newest checkpoint that is intact."""

from pathlib import Path

from imagenet_jax.errors import UserError
from imagenet_jax.training import integrity


def set_aside_damaged(workdir: Path, *, strict: bool = False) -> list[str]:
    """Move checkpoints newer than the last intact one to `damaged/`, so that none is trained from.

    Of older ones only the metrics are looked at, by which the best is chosen. Call it before
    `Checkpoints` is made; of several processes, in the first one.

    Args:
      strict: raise UserError at the first damage instead.

    Returns:
      A line for the console per file that is damaged. Raises UserError where no checkpoint is left.
    """
    directory = workdir / "checkpoints"
    steps = sorted((int(p.name) for p in directory.glob("*") if p.name.isdecimal()), reverse=True)
    notes: list[str] = []
    intact: int | None = None
    for step in steps:
        item = None if intact is None else "metrics"
        found = integrity.problems(directory / str(step), item)
        if not found:
            intact = step if intact is None else intact
            continue
        if strict:
            raise UserError(
                f"{found[0]}; without --strict_restore the checkpoint is set aside and training "
                "continues from the one before it"
            )
        place = _free_name(workdir / "damaged", step)
        try:
            place.parent.mkdir(exist_ok=True)
            (directory / str(step)).rename(place)
        except OSError as e:
            raise UserError(f"{found[0]}, and it cannot be moved to {place}: {e.strerror}") from e
        notes += [f"damaged: {problem}; checkpoint moved to {place}" for problem in found]
    if steps and intact is None:
        raise UserError(
            f"no checkpoint of {directory} is intact ({notes[0]}); start anew in another --workdir"
        )
    return notes


def _free_name(directory: Path, step: int) -> Path:
    place, count = directory / str(step), 1
    while place.exists():
        count += 1
        place = directory / f"{step}.{count}"
    return place
