"""A file that only grows by whole records, whatever happens while they are written."""

import contextlib
import os
from pathlib import Path


class AppendFile:
    """Records wait in memory while the disk is full or not writable, and are written later."""

    def __init__(self, path: Path):
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        self._end = os.fstat(self._file).st_size
        self._waiting = b""

    def write(self, record: bytes) -> None:
        """Append at once if that is possible; never raises OSError."""
        self._waiting += record
        with contextlib.suppress(OSError):
            self._drain()

    def flush(self) -> None:
        """Everything written so far survives a kill once this returns; OSError where it cannot."""
        self._drain()
        os.fsync(self._file)

    def close(self) -> None:
        """What still cannot be written is lost; a later run writes it again."""
        with contextlib.suppress(OSError):
            self._drain()
        os.close(self._file)

    def _drain(self) -> None:
        done = 0
        try:
            while done < len(self._waiting):
                done += os.pwrite(self._file, self._waiting[done:], self._end + done)
        except OSError:
            with contextlib.suppress(OSError):  # no half record for those who read meanwhile
                os.ftruncate(self._file, self._end)
            raise
        self._end += done
        self._waiting = b""
