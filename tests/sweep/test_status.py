"""What a sweep says while it runs, in a log and on a terminal."""

import io
import re

import pytest

from imagenet_jax.sweep import status as ablation_status
from imagenet_jax.sweep.status import Row, Status


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds) moves the time that the status sees."""
    now = [1000.0]
    monkeypatch.setattr(ablation_status.time, "monotonic", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def rows(*states, step=0):
    total = 100
    return [
        Row(f"c{i}", state, step, total, f"loss {i}.0", 65.0 if state == "running" else None)
        for i, state in enumerate(states)
    ]


def test_a_log_has_a_line_for_each_change(clock):
    stream = io.StringIO()
    with Status(1, stream) as status:
        status.show(rows("running", "not started", "not started"))
        clock(1)
        status.show(rows("running", "not started", "not started", step=10))  # too soon
        clock(40)
        status.show(rows("running", "not started", "not started", step=20))
        clock(19)
        status.show(rows("finished", "running", "not started", step=100))
        status.show(rows("finished", "failed", "running", step=100))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "running     c0  step 0/100  loss 0.0  ETA 0:01:05"
    assert lines[1] == "running     c0  step 20/100  loss 0.0  ETA 0:01:05"
    assert lines[2].startswith("finished    c0  step 100/100")
    assert lines[3].startswith("running     c1")
    # One cell took 60 s; one runs since now and one is to come.
    assert lines[4] == "3 cells: 1 running, 1 not started, 1 finished; ETA 0:02:00"
    assert [line.split()[0] for line in lines[5:]] == ["failed", "running", "3"]
    assert lines[-1] == "3 cells: 1 running, 1 failed, 1 finished; ETA 0:01:00"


def test_two_at_once_take_half_the_time(clock):
    stream = io.StringIO()
    with Status(2, stream) as status:
        status.show(rows("running", "running", *["not started"] * 4))
        clock(60)
        status.show(rows("finished", "finished", *["not started"] * 4))
    assert "ETA 0:02:00" in stream.getvalue().splitlines()[-1]


def test_a_terminal_has_a_table_of_what_matters(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    states = ["finished"] * 30 + ["failed", "running"] + ["not started"] * 30
    with Status(1, stream) as status:
        status.show(rows(*states))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "c30 " in text and "c31 " in text
    assert "c2 " not in text  # a screen has no place for all that is finished
    assert "and 42 more; 62 cells: 1 running, 1 failed, 30 not started, 30 finished" in text
    assert "0:01:05" in text
