"""UserError, the exception for bad input, and the texts of errors."""

import difflib
import os
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_ESCAPED = ("Cc", "Cs", "Zl", "Zp")  # control characters, surrogates, line separators
_LISTED = 20  # choices that an error lists although it suggests one


class UserError(Exception):
    """Bad input, reported in one line: the file, field or value, what is wrong, how to fix it.

    Commands print that line and exit with 1. Tracebacks are for defects, or shown by `--debug`.
    """


def one_line(reason: object, length: int | None = 300) -> str:
    """Return the text of an error without line breaks, cut off after `length` characters."""
    return " ".join(str(reason).split())[:length]


def expand_user(path: str | Path) -> Path:
    """Return `path` with a leading `~` or `~user` expanded. UserError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as e:
        raise UserError(
            f"{path}: there is no user {Path(path).parts[0][1:]!r}; write the path without ~"
        ) from e


@contextmanager
def reading_files() -> Iterator[None]:
    """Turn an OSError into a UserError that names the file or folder. Also a decorator."""
    try:
        yield
    except OSError as e:
        path = Path(os.fsdecode(e.filename or ""))
        raise UserError(f"{path} {why_unreadable(path, e)}") from e


@contextmanager
def writing(what: object) -> Iterator[None]:
    """Turn an OSError into the UserError "WHAT cannot be written: reason"."""
    try:
        yield
    except OSError as e:
        raise UserError(f"{what} cannot be written: {e.strerror or one_line(e)}") from e


def why_unreadable(path: Path, error: OSError) -> str:
    """Return why `path` cannot be read, as a phrase that follows its name."""
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return f"is a link to {path.readlink()}, which does not exist; remove the link"
    return f"cannot be read: {error.strerror}"


def printable(text: str) -> str:
    """Return `text` on one line, with control characters and invalid UTF-8 escaped."""
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _ESCAPED else c
        for c in text
    )


def shorten(names: list[str]) -> str:
    """Return "a, b, c and 2 more": the first three names, and the number of others."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def check_choice(what: str, value: object, choices: Iterable[str]) -> None:
    """Raise UserError that lists the `choices` and suggests the nearest, unless `value` is one."""
    choices = list(choices)
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = len(choices) <= _LISTED or not near
    problem = f"use {' | '.join(choices)}" if listed else "unknown"
    raise UserError(f"{what} = {value!r}: {problem}{hint}")
