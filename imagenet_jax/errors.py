"""The one exception that means "the user can mend this"."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Bad input, told in one line that names the file, field or value and the way out.

    The doors print it and exit 1; a traceback is kept for defects (or `--debug`).
    """


@contextmanager
def reading_files() -> Iterator[None]:
    """Raise a UserError that names the file or folder for an OSError; also works as a decorator."""
    try:
        yield
    except OSError as e:
        path = Path(os.fsdecode(e.filename or ""))
        if isinstance(e, FileNotFoundError) and path.is_symlink():
            raise UserError(
                f"{path} is a link to {path.readlink()}, which does not exist; remove the link"
            ) from e
        raise UserError(f"{path} cannot be read: {e.strerror}") from e
