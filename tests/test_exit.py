"""How a command ends when it is stopped, and when its output cannot be written."""

import errno
import io
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from imagenet_jax import cli


def test_a_stopped_command_exits_although_a_thread_waits_forever():
    """Python would join the threads of a pool at its end."""
    code = (
        "import functools, threading\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from imagenet_jax import cli\n"
        "cli.exit_soon = functools.partial(cli.exit_soon, seconds=0.2)\n"
        "ThreadPoolExecutor(1).submit(threading.Event().wait)\n"
        "cli.run(lambda argv: 143)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=60)
    assert done.returncode == 143


class _Full(io.StringIO):
    """What Python has for a file on a full disk: the text is lost at the flush."""

    def flush(self):
        if self.getvalue():
            self.seek(0)
            self.truncate()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _Closed(io.StringIO):
    """A pipe without a reader."""

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@pytest.fixture
def ends(monkeypatch, capsys):
    """ends(stream, ...): (exit code, standard error, whether a command came to its end)."""

    def call(stream, how, returns=0):
        done = []

        def command(argv):
            for line in range(3):
                print(line, flush=True)
            done.append(True)
            return returns

        monkeypatch.setattr("sys.argv", ["x"])
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setattr(cli, "exit_soon", lambda code: None)
        with pytest.raises(SystemExit) as caught:
            cli.run(command, lost_output=how)
        assert sys.stdout is stream
        return caught.value.code, capsys.readouterr().err, bool(done)

    return call


def test_output_that_cannot_be_written(ends):
    warning = (
        "warning: standard output cannot be written: No space left on device; the command "
        "continues without it\n"
    )
    assert ends(_Full(), "ignored") == (0, warning, True)
    assert ends(_Full(), "fails") == (1, warning, True)
    assert ends(_Full(), "fails", returns=143)[0] == 143
    error = "error: standard output cannot be written: No space left on device\n"
    assert ends(_Full(), "ends") == (1, error, False)
    warning = warning.replace("No space left on device", "Broken pipe")
    assert ends(_Closed(), "ignored") == (0, warning, True)
    assert ends(_Closed(), "ends") == (1, "", False)


_COMMAND = (
    "import contextlib, os, sys\n"
    "from imagenet_jax import cli\n"
    "def command(argv):\n"
    "    print('printed')\n"
    "    descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n"
    "    print('error', file=sys.stderr)\n"
    "    with contextlib.suppress(OSError):\n"
    "        os.write(1, b'printed by a library')\n"
    "    os.write(descriptor, b'written')\n"
    "cli.run(command, sys.argv[2])\n"
)


@pytest.mark.parametrize(
    ("redirection", "how", "code"),
    [
        ("> /dev/full", "ignored", 0),
        ("> /dev/full", "fails", 1),
        ("2> /dev/full", "fails", 0),
        (">&-", "fails", 0),
        ("2>&-", "fails", 0),
        ("<&- >&- 2>&-", "fails", 0),
        ("| true", "ignored", 0),
    ],
)
def test_a_command_in_a_shell_finishes_its_work(tmp_path, redirection, how, code):
    """A file that is opened meanwhile gets nothing that was meant for a stream."""
    file = tmp_path / "file"
    line = f'"$0" -c "$1" "$2" {how} {redirection}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", line, sys.executable, _COMMAND, file],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert file.read_text() == "written"
    assert "Exception" not in done.stderr and "Traceback" not in done.stderr
