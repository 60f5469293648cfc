"""The one exception that means "the user can mend this"."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Bad input, told in one line that names the file, field or value and the way out.

    The doors print it and exit 1; a traceback is kept for defects (or `--debug`).
    """


def one_line(reason: object, length: int | None = 300) -> str:
    """Return what `reason` says, without line breaks and not longer than `length`."""
    return " ".join(str(reason).split())[:length]


def expand_user(path: str | Path) -> Path:
    """Return `path` with a leading `~` or `~user` replaced; UserError for an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as e:
        raise UserError(
            f"{path}: there is no user {Path(path).parts[0][1:]!r}; write the path without ~"
        ) from e


@contextmanager
def reading_files() -> Iterator[None]:
    """Raise a UserError that names the file or folder for an OSError; also works as a decorator."""
    try:
        yield
    except OSError as e:
        path = Path(os.fsdecode(e.filename or ""))
        raise UserError(f"{path} {why_unreadable(path, e)}") from e


def why_unreadable(path: Path, error: OSError) -> str:
    """Return what is wrong with a file or folder, to follow its name."""
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return f"is a link to {path.readlink()}, which does not exist; remove the link"
    return f"cannot be read: {error.strerror}"
