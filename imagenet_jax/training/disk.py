"""What the disk says when it cannot take more."""

import errno
import os
import shutil
from pathlib import Path

from imagenet_jax.errors import one_line

_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
# Beside the arrays: names, shapes, shardings, and blocks that are not full.
_OVERHEAD_BYTES = 2**20


def require_space(directory: Path, size: int) -> None:
    """Raise OSError where `size` bytes of arrays cannot fit.

    Writing would find out too, with a message for every array, in threads that go on for a while.
    """
    free, needed = shutil.disk_usage(directory).free, size + _OVERHEAD_BYTES
    if free < needed:
        text = f"{os.strerror(errno.ENOSPC)}, {free:,} bytes free of {needed:,} needed"
        raise OSError(errno.ENOSPC, text)


def reason(error: Exception) -> str:
    """One line; of tensorstore's long ones what the system said at their end."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = one_line(error, length=None)
    known = [os.strerror(code) for code in _ERRORS if os.strerror(code) in text]
    return known[0] if known else text[:300]
