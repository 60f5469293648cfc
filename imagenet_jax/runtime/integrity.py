"""Whether the files of a checkpoint are those that were written: sha256 of each, beside them.

`checksums.json` is written into a checkpoint before it is committed by its rename, so that a
complete checkpoint has one. Without it the files cannot be verified, which counts as damage.
"""

import hashlib
import os
import time
from pathlib import Path
from typing import Any

from imagenet_jax.errors import UserError
from imagenet_jax.files import read_json, write_json

FILE = "checksums.json"
# What orbax writes or rewrites in the commit itself, after the checksums; restoring ignores it.
_OF_THE_COMMIT = ("commit_success.txt", "_CHECKPOINT_METADATA")

# A removal under way takes a file away in that time.
_REMOVAL_SECONDS = 0.5


class RemovedCheckpoint(UserError):
    """A checkpoint was removed while it was read."""

    def __init__(self, step: int):
        super().__init__(f"checkpoint {step} was removed while it was read; use another one")


def write_checksums(directory: Path) -> None:
    """Hash every file below `directory` into its `checksums.json`."""
    record = {
        str(path.relative_to(directory)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in (*_OF_THE_COMMIT, FILE)
    }
    write_json(directory / FILE, record, indent=1)


def add_checksum(directory: Path, name: str) -> None:
    """Add a file that was written into a complete checkpoint to its `checksums.json`."""
    path, file = directory / FILE, directory / name
    if path.exists():
        record = read_json(path)
        record[name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        write_json(path, record, indent=1)


def is_listed(directory: Path) -> bool:
    """Whether the checkpoint `directory` has its list of checksums."""
    return (directory / FILE).exists()


def problems(directory: Path, item: str | None = None) -> list[str]:
    """One line per file that is not as it was written: its path, and what is wrong with it.

    Args:
      directory: a complete checkpoint.
      item: look at this item of it alone ("weights", "optimizer", ...).
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
    found = []
    for name, (size, digest) in files.items():
        if item is not None and not name.startswith(f"{item}/"):
            continue
        wrong = _compare(directory / name, size, digest)
        if wrong:
            found.append(f"{directory / name} {wrong}")
    return found


def state_of(directory: Path, item: str) -> tuple[str, str]:
    """Return "intact", "damaged", "unverified" or "removed" for an item, and a line that says why.

    "unverified": checksums.json is lost. "removed": the checkpoint is gone, or is being removed.
    """
    found = problems(directory, item)
    if not found:
        return "intact", ""
    if is_being_removed(directory):
        return "removed", ""
    return ("damaged" if is_listed(directory) else "unverified"), found[0]


def is_being_removed(directory: Path) -> bool:
    """Whether a checkpoint is gone, or goes: its files vanish one by one, its folder last."""
    before = None
    while directory.exists():
        files = sum(len(names) for _, _, names in os.walk(directory))
        if files == before:
            return False
        before = files
        time.sleep(_REMOVAL_SECONDS)
    return True


def _compare(path: Path, size: int, digest: str) -> str | None:
    try:
        found = path.stat().st_size
        if found != size:
            return f"has {found:,} bytes instead of {size:,}"
        if _sha256(path) != digest:
            return "has other bytes than were written (sha256 differs)"
    except FileNotFoundError:
        return "is missing"
    except OSError as e:
        return f"cannot be read ({e.strerror})"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
