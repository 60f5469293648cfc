"""A terminal of a program's own, and a picture of what it shows.

  python -m tests.terminal --until='2[4-9]./360' --out=docs/panel.svg -- \\
    python -m imagenet_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

import argparse
import fcntl
import io
import itertools
import os
import pty
import re
import shutil
import signal
import struct
import termios
import time
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import MONOKAI
from rich.text import Text

_REPOSITORY = Path(__file__).parents[1]


class Terminal:
    """A process in a terminal of its own, and what its screen shows."""

    def __init__(self, columns, rows, *command):
        self.screen = pyte.Screen(columns, rows)
        self._stream, self.everything = pyte.ByteStream(self.screen), b""
        self.pid, self._file = pty.fork()
        if self.pid == 0:
            os.chdir(_REPOSITORY)
            self._resize(0, columns, rows)
            os.environ |= {"XLA_FLAGS": "", "TERM": "xterm-256color"}
            os.execv(command[0], command)

    @staticmethod
    def _resize(file, columns, rows):
        fcntl.ioctl(file, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns, rows):
        self._resize(self._file, columns, rows)
        self.screen.resize(rows, columns)

    def until(self, pattern, timeout=120):
        """Wait until the screen shows `pattern`."""
        end = time.monotonic() + timeout
        while not re.search(pattern, self.text()):
            assert time.monotonic() < end, self.text()
            assert self._read(), f"it ended\n{self.text()}"

    def wait(self):
        """The exit code, or minus the signal."""
        while self._read():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _read(self):
        try:
            got = os.read(self._file, 65536)
        except OSError:  # Linux: the other side is closed
            return False
        self.everything += got
        self._stream.feed(got)
        return bool(got)

    def text(self):
        return "\n".join(self.screen.display)

    def picture(self):
        """What is on the screen, as SVG; empty lines at its end are left out."""
        last = max(i for i, line in enumerate(self.screen.display) if line.strip())
        columns = self.screen.columns
        console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True)
        for row in range(last + 1):
            line = Text()
            cells = [self.screen.buffer[row][column] for column in range(columns)]
            for (colour, bold), run in itertools.groupby(cells, lambda c: (_colour(c.fg), c.bold)):
                line.append("".join(cell.data for cell in run), Style(color=colour, bold=bold))
            console.print(line, no_wrap=True)
        return console.export_svg(title="imagenet_jax.main", theme=MONOKAI, unique_id="panel")


def _colour(name):
    """pyte's name of a colour in rich's words."""
    if re.fullmatch("[0-9a-f]{6}", name):
        return f"#{name}"
    return None if name == "default" else name.replace("brown", "yellow")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--until", required=True, help="take it when the screen shows this regex")
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True, help="SVG file")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    terminal = Terminal(args.columns, 24, shutil.which(args.command[0]), *args.command[1:])
    terminal.until(args.until, timeout=1200)
    args.out.write_text(terminal.picture())
    os.kill(terminal.pid, signal.SIGTERM)
    terminal.wait()


if __name__ == "__main__":
    main()
