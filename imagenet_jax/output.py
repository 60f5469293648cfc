"""Standard streams that may fail without losing the work of a command.

Examples: a full disk (`> log.txt`), a reader that has ended (`| head -1`), a closed stream (`>&-`).
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from imagenet_jax.errors import UserError


class Output:
    """A text stream that reports its first failed write and ignores later ones.

    Later text is written if the stream works again.

    Attributes:
      lost: the first error, or None if everything was written.
    """

    def __init__(self, stream: TextIO, name: str, *, ends: bool):
        """`ends`: the first failure ends the command, because this output is its result."""
        self._stream, self._name, self._ends = stream, name, ends
        self.lost: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as e:
            self._fail(e)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as e:
            self._fail(e)

    def _fail(self, error: OSError) -> None:
        if self.lost:
            return
        self.lost = error
        problem = f"{self._name} cannot be written: {error.strerror}"
        if self._ends:
            raise error if error.errno == errno.EPIPE else UserError(problem)
        if self._name == "standard output":
            print(f"warning: {problem}; the command continues without it", file=sys.stderr)

    def finish(self) -> None:
        """Flush now: a failure while Python exits would change the exit code."""
        try:
            self._stream.flush()
        except OSError as e:
            self.lost = self.lost or e
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextlib.contextmanager
def safe_streams(*, ends: bool) -> Iterator[Output]:
    """Replace sys.stdout and sys.stderr by `Output`s in this block; yield that of sys.stdout.

    `ends`: the first failure of sys.stdout raises UserError or BrokenPipeError.
    """
    _open_closed_streams()
    before = {"stdout": sys.stdout, "stderr": sys.stderr}
    output = Output(sys.stdout, "standard output", ends=ends)
    safe = {"stdout": output, "stderr": Output(sys.stderr, "standard error", ends=False)}
    try:
        for name, stream in safe.items():
            setattr(sys, name, stream)
        yield output
    finally:
        for name, stream in safe.items():
            stream.finish()
            setattr(sys, name, before[name])


def _open_closed_streams() -> None:
    """Open closed streams as os.devnull: otherwise the next file gets their number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
