"""The watchdog ends a process without progress and prints its stacks."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import FASTER_COMPILATION, REPOSITORY

from imagenet_jax.runtime.stopping import Watchdog

_START = "import threading, time\nfrom imagenet_jax.runtime.stopping import Watchdog\n"
# Holds the GIL: a regular expression that backtracks for minutes.
_HOLD = "def holding_the_lock():\n    import re; re.match(r'(a*)*b', 'a' * 60)\n"


def _run(code):
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _START + code],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done, time.monotonic() - start


def test_a_process_without_progress_ends_and_prints_every_stack():
    done, _ = _run(
        "def stuck_in_the_input():\n    time.sleep(50)\n"
        "def another_thread():\n    time.sleep(50)\n"
        "threading.Thread(target=another_thread, daemon=True).start()\n"
        "with Watchdog(0.5):\n    stuck_in_the_input()\n"
    )
    assert done.returncode == 142
    assert "no progress for 1 s (config.log.watchdog_seconds)" in done.stderr
    for name in ("stuck_in_the_input", "another_thread", "in _watch"):
        assert name in done.stderr


def test_code_that_holds_the_gil_is_ended_too():
    done, seconds = _run(
        _HOLD + "with Watchdog(0.5):\n    time.sleep(0.2)\n    holding_the_lock()\n"
    )
    assert done.returncode == -signal.SIGALRM  # 142 in a shell
    assert "holding_the_lock" in done.stderr
    assert seconds < 30


def test_progress_keeps_the_process_alive_and_leaving_stops_the_watchdog():
    done, _ = _run(
        "with Watchdog(1.0) as watchdog:\n"
        "    for _ in range(30):\n        time.sleep(0.1); watchdog.beat()\n"
        "time.sleep(2)\nprint('alive', threading.active_count())\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alive 1\n"


def test_0_seconds_disable_it():
    done, _ = _run("with Watchdog(0.0):\n    time.sleep(1)\n    print(threading.active_count())\n")
    assert (done.returncode, done.stdout) == (0, "1\n")


def test_training_steps_and_evaluation_batches_are_progress(quick, tmp_path, monkeypatch):
    from imagenet_jax import train as loop

    beats = []
    monkeypatch.setattr(Watchdog, "beat", lambda self: beats.append(1))
    quick.log.watchdog_seconds = 500.0
    assert loop.train(quick, tmp_path) == 0
    assert len(beats) >= 8 + 2 * 3  # steps, and batches of 120 of 360 images, EMA and raw


@pytest.mark.slow
def test_a_stalled_input_ends_the_training(tiny, tmp_path):
    """From the command, with a source that hangs, to the exit code."""
    code = (
        "import sys, time\n"
        "from imagenet_jax import cli, main\n"
        "from imagenet_jax import train as loop\n"
        "def prefetch_to_device(batches, mesh):\n"
        "    def stalled_reader():\n        time.sleep(500)\n"
        "    stalled_reader()\n    yield next(batches)\n"
        "loop.prefetch_to_device = prefetch_to_device\n"
        "cli.run(main.main)\n"
    )
    done = subprocess.run(
        [
            sys.executable, "-c", code, "--config=tests/torture/config.py:9",
            f"--config.data.path={tiny.data.path}", f"--workdir={tmp_path}",
            "--config.log.watchdog_seconds=30",
        ],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
        env=os.environ | {"XLA_FLAGS": FASTER_COMPILATION},
    )  # fmt: skip
    assert done.returncode == 142, done.stderr
    assert "stalled_reader" in done.stderr
