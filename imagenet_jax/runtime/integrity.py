"""Checksums of checkpoints: writes them, verifies files, and sets damaged checkpoints aside.

`checksums.json` is written into a checkpoint before the rename that commits it, so that every
complete checkpoint has one. A checkpoint without it cannot be verified and counts as damaged.
"""

import hashlib
import itertools
import os
import time
from pathlib import Path
from typing import Any

from imagenet_jax.errors import UserError
from imagenet_jax.files import read_json, write_json

FILE = "checksums.json"
# Files that orbax writes while committing, after the checksums; restoring does not read them.
_WRITTEN_BY_COMMIT = ("commit_success.txt", "_CHECKPOINT_METADATA")
# A removal in progress deletes at least one file in this time.
_REMOVAL_SECONDS = 0.5


class RemovedCheckpoint(UserError):
    """A checkpoint was removed while it was read."""

    def __init__(self, step: int):
        super().__init__(f"checkpoint {step} was removed while it was read; use another one")


def write_checksums(directory: Path) -> None:
    """Write `checksums.json` with the size and SHA-256 of every file below `directory`."""
    record = {
        str(path.relative_to(directory)): _entry(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in (*_WRITTEN_BY_COMMIT, FILE)
    }
    write_json(directory / FILE, record, indent=1)


def add_checksum(directory: Path, name: str) -> None:
    """Add the file `name`, written into a complete checkpoint, to its `checksums.json`."""
    if (directory / FILE).exists():
        record = read_json(directory / FILE) | {name: _entry(directory / name)}
        write_json(directory / FILE, record, indent=1)


def find_problems(directory: Path, item: str | None = None) -> list[str]:
    """Return one line for each damaged file: its path and what is wrong with it.

    Args:
      directory: a complete checkpoint.
      item: check only this item of it ("weights", "optimizer", ...).
    """
    path = directory / FILE
    try:
        record: dict[str, dict[str, Any]] = read_json(path)
        files = {
            name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in record.items()
        }
    except FileNotFoundError:
        return [f"{path} is missing: the checkpoint cannot be verified"]
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as e:
        return [f"{path} cannot be read ({e})"]
    return [
        f"{directory / name} {problem}"
        for name, (size, digest) in files.items()
        if item is None or name.startswith(f"{item}/")
        if (problem := _find_problem(directory / name, size, digest))
    ]


def check_item(directory: Path, item: str) -> tuple[str, str]:
    """Return "intact", "damaged", "unverified" or "removed", and a line that explains it.

    "unverified": checksums.json is missing. "removed": the checkpoint has been removed, or is being
    removed.
    """
    found = find_problems(directory, item)
    if not found:
        return "intact", ""
    if is_being_removed(directory):
        return "removed", ""
    return ("damaged" if (directory / FILE).exists() else "unverified"), found[0]


def is_being_removed(directory: Path) -> bool:
    """Return whether a checkpoint is gone or is losing its files. Its folder is removed last."""
    before = None
    while directory.exists():
        files = sum(len(names) for _, _, names in os.walk(directory))
        if files == before:
            return False
        before = files
        time.sleep(_REMOVAL_SECONDS)
    return True


def set_aside_damaged(workdir: Path, *, strict: bool = False) -> list[str]:
    """Move damaged checkpoints to `damaged/`, so that training continues from an intact one.

    The newest intact checkpoint is verified completely. Of older ones, only the metrics are
    verified, because they determine the best checkpoint. If no checkpoint can be verified, training
    continues from the newest one without checksums.json.

    Call it before creating `Checkpoints`, and only on process 0 of a run with several processes.

    Args:
      strict: raise UserError instead of moving anything.

    Returns:
      One line for the console for each damaged file.

    Raises UserError, without moving anything, if no checkpoint would be left.
    """
    directory = workdir / "checkpoints"
    steps = sorted((int(p.name) for p in directory.glob("*") if p.name.isdecimal()), reverse=True)
    damaged: dict[int, list[str]] = {}
    intact = False  # whether one was found
    for step in steps:
        path = directory / str(step)
        found = find_problems(path, "metrics" if intact else None)
        if not found:
            intact = True
            continue
        # An older checkpoint without checksums is left over from a removal that was killed.
        if strict and (not intact or (path / FILE).exists()):
            raise UserError(
                f"{found[0]}; without --strict_restore the checkpoint is set aside and training "
                "continues from the one before it"
            )
        damaged[step] = found
    notes: list[str] = []
    if steps and not intact:
        unverified = [step for step in damaged if not (directory / str(step) / FILE).exists()]
        if not unverified:
            raise UserError(
                f"no checkpoint of {directory} is intact ({damaged[steps[0]][0]}); start again in "
                "another --workdir"
            )
        (problem,) = damaged.pop(unverified[0])
        notes.append(
            f"damaged: {problem}; no verified checkpoint is left; training continues from this one"
        )
    for step, found in damaged.items():
        names = itertools.chain([str(step)], (f"{step}.{i}" for i in itertools.count(2)))
        paths = (workdir / "damaged" / name for name in names)
        target = next(path for path in paths if not path.exists())
        try:
            target.parent.mkdir(exist_ok=True)
            (directory / str(step)).rename(target)
        except OSError as e:
            raise UserError(f"{found[0]}, and it cannot be moved to {target}: {e.strerror}") from e
        notes += [f"damaged: {problem}; checkpoint moved to {target}" for problem in found]
    return notes


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _find_problem(path: Path, size: int, digest: str) -> str | None:
    try:
        found = path.stat().st_size
        if found != size:
            return f"has {found:,} bytes instead of {size:,}"
        if _sha256(path) != digest:
            return "has different content than was written (sha256 differs)"
    except FileNotFoundError:
        return "is missing"
    except OSError as e:
        return f"cannot be read ({e.strerror})"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
