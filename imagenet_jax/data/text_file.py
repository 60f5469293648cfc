"""Text files that people supply: UTF-8, with or without a byte-order mark."""

from pathlib import Path

from imagenet_jax.errors import UserError


def read_lines(path: Path) -> list[str]:
    """The lines of a text file; raises UserError where it cannot be read or is not UTF-8."""
    try:
        return path.read_text("utf-8-sig").splitlines()
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not text in UTF-8 ({e}); save it as UTF-8") from e
