"""Progress of a sweep in a log and on a terminal."""

import io
import re

import pytest

from imagenet_jax.sweep import progress as progress_module
from imagenet_jax.sweep.progress import Progress, Row


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds) advances the time that the progress sees."""
    now = [1000.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def rows(*states, step=0):
    total = 100
    return [
        Row(f"c{i}", state, step, total, f"loss {i}.0", 65.0 if state == "running" else None)
        for i, state in enumerate(states)
    ]


def test_log_has_a_line_for_each_change(clock):
    stream = io.StringIO()
    with Progress(1, stream) as progress:
        progress.show(rows("running", "not started", "not started"))
        clock(1)
        progress.show(rows("running", "not started", "not started", step=10))  # too soon
        clock(40)
        progress.show(rows("running", "not started", "not started", step=20))
        clock(19)
        progress.show(rows("finished", "running", "not started", step=100))
        progress.show(rows("finished", "failed", "running", step=100))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "running     c0  step 0/100  loss 0.0  ETA 65.0 s"
    assert lines[1] == "running     c0  step 20/100  loss 0.0  ETA 65.0 s"
    assert lines[2].startswith("finished    c0  step 100/100")
    assert lines[3].startswith("running     c1")
    # One trial took 60 s, one has just started, and one is left.
    assert lines[4] == "3 trials: 1 running, 1 not started, 1 finished; ETA 2.0 min"
    assert [line.split()[0] for line in lines[5:]] == ["failed", "running", "3"]
    assert lines[-1] == "3 trials: 1 running, 1 failed, 1 finished; ETA 60.0 s"


def test_two_jobs_halve_the_remaining_time(clock):
    stream = io.StringIO()
    with Progress(2, stream) as progress:
        progress.show(rows("running", "running", *["not started"] * 4))
        clock(60)
        progress.show(rows("finished", "finished", *["not started"] * 4))
    assert "ETA 2.0 min" in stream.getvalue().splitlines()[-1]


def test_terminal_table_shows_running_and_failed_trials_first(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    states = ["finished"] * 30 + ["failed", "running"] + ["not started"] * 30
    with Progress(1, stream) as progress:
        progress.show(rows(*states))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "c30 " in text and "c31 " in text
    assert "c2 " not in text  # finished trials do not all fit the screen
    assert "and 42 more; 62 trials: 1 running, 1 failed, 30 not started, 30 finished" in text
    assert "65.0 s" in text
