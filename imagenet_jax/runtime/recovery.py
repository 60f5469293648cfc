"""What a run continues from after kills and damage: the newest checkpoint that is intact."""

from pathlib import Path

from imagenet_jax.errors import UserError
from imagenet_jax.runtime import integrity


def set_aside_damaged(workdir: Path, *, strict: bool = False) -> list[str]:
    """Move damaged checkpoints to `damaged/`, so that training continues from an intact one.

    Of checkpoints older than that one only the metrics are looked at, which choose the best. One
    whose checksums.json is lost cannot be verified and counts as damaged; if there is no other,
    training continues from the newest of them. Call it before `Checkpoints` is made; of several
    processes, in the first one.

    Args:
      strict: raise UserError instead.

    Returns:
      A line for the console per file that is damaged. Raises UserError if no checkpoint is left;
      nothing is moved then.
    """
    directory = workdir / "checkpoints"
    steps = sorted((int(p.name) for p in directory.glob("*") if p.name.isdecimal()), reverse=True)
    damaged: dict[int, list[str]] = {}
    intact: int | None = None
    for step in steps:
        path = directory / str(step)
        found = integrity.problems(path, None if intact is None else "metrics")
        if not found:
            intact = step if intact is None else intact
            continue
        # Of an older one this is what a kill left of its removal.
        if strict and (intact is None or integrity.is_listed(path)):
            raise UserError(
                f"{found[0]}; without --strict_restore the checkpoint is set aside and training "
                "continues from the one before it"
            )
        damaged[step] = found
    notes: list[str] = []
    if steps and intact is None:
        unverified = [step for step in damaged if not integrity.is_listed(directory / str(step))]
        if not unverified:
            raise UserError(
                f"no checkpoint of {directory} is intact ({damaged[steps[0]][0]}); start anew in "
                "another --workdir"
            )
        (problem,) = damaged.pop(unverified[0])
        notes.append(
            f"damaged: {problem}; no verified checkpoint is left; training continues from this one"
        )
    for step, found in damaged.items():
        place = _free_name(workdir / "damaged", step)
        try:
            place.parent.mkdir(exist_ok=True)
            (directory / str(step)).rename(place)
        except OSError as e:
            raise UserError(f"{found[0]}, and it cannot be moved to {place}: {e.strerror}") from e
        notes += [f"damaged: {problem}; checkpoint moved to {place}" for problem in found]
    return notes


def _free_name(directory: Path, step: int) -> Path:
    place, count = directory / str(step), 1
    while place.exists():
        count += 1
        place = directory / f"{step}.{count}"
    return place
