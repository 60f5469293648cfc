"""How a command ends when it is stopped, and when its output cannot be written."""

import subprocess
import sys

from conftest import REPOSITORY


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
