"""A run that is killed at random moments ends with the same bits as an uninterrupted run."""

import os
import random
import signal

import pytest
from torture.killing import draw, torture


def _seed():
    """A random seed; set TORTURE_SEED to repeat the kills of a failed test."""
    return int(os.environ.get("TORTURE_SEED", random.SystemRandom().randrange(10**6)))


def _run(tmp_path, digits_path, kills):
    result = torture(tmp_path, digits_path, kills, _seed())
    print(result)
    assert result["mismatches"] == 0
    assert result["finished"] == 0
    assert result["killed"] + result["stopped"] == kills


@pytest.mark.slow
def test_3_kills_change_nothing(tmp_path, digits_path):
    _run(tmp_path, digits_path, 3)


@pytest.mark.full
def test_100_kills_change_nothing(tmp_path, digits_path):
    _run(tmp_path, digits_path, 100)


def test_a_seed_draws_every_kind_of_kill():
    rng = random.Random(0)
    kills = [draw(rng, number) for number in range(100)]
    rng = random.Random(0)
    assert kills == [draw(rng, number) for number in range(100)]
    assert {k.moment for k in kills} == {"start", "compile", "step", "write"}
    for moment in ("compile", "step", "write"):
        ways = {k.signals for k in kills if k.moment == moment}
        assert {(signal.SIGKILL,), (signal.SIGTERM,), (signal.SIGINT,)} <= ways
