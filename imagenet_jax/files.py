"""Names of files that are being written."""

import secrets
from pathlib import Path


def part_of(path: Path, suffix: str = "") -> Path:
    """Return a new hidden name beside `path`, for a file that is renamed to it once it is whole.

    The name is random: two containers may share a directory, a host name and a process number.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{suffix}")
