"""Stop signals at any moment: training saves, and resumes as if it had not stopped."""

import errno
import os
import signal
import threading
import time

import pytest

from imagenet_jax import train as loop
from imagenet_jax.errors import UserError
from imagenet_jax.runtime import integrity, stopping
from imagenet_jax.runtime.lock import Lock
from imagenet_jax.runtime.stopping import StopSignal
from imagenet_jax.training import run_context
from imagenet_jax.training.checkpoint import Checkpoints

STEP = 48 / 1437  # epochs


def _stop():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def config(tiny, light):
    """A config that evaluates and saves at steps 4 and 8; step 4 is the best."""
    tiny.eval.every_epochs = tiny.checkpoint.every_epochs = 4 * STEP
    light.result = lambda step: {"count": 360, "top1": 1 - step / 10, "top5": 1.0, "loss": 1.0}
    return tiny


def _kept(workdir):
    """Return (steps, best) of the checkpoints, and the metrics of each."""
    checkpoints = Checkpoints(workdir / "checkpoints", write=False)
    steps = checkpoints.steps()
    files = [workdir / "checkpoints" / str(step) / "metrics" / "metrics" for step in steps]
    return steps, checkpoints.find("best"), [path.read_text() for path in files]


@pytest.mark.parametrize("step", [4, 8])
def test_a_stop_during_evaluation_saves_first_and_evaluates_later(
    light, config, tmp_path, history, step
):
    assert loop.train(config, tmp_path / "whole") == 0
    light.evaluated.clear()
    light.on_batch = lambda at: _stop() if at == step else None
    assert loop.train(config, tmp_path / "parts") == 143
    assert light.evaluated == [4][: step // 8]  # the evaluation was interrupted
    checkpoint = tmp_path / "parts" / "checkpoints" / str(step)
    assert checkpoint.is_dir() and not (checkpoint / "metrics").exists()
    assert (
        loop.train(config, tmp_path / "parts") == 143
    )  # interrupted again, in the same evaluation
    light.on_batch = lambda at: None
    assert loop.train(config, tmp_path / "parts") == 0
    assert light.evaluated == [4, 8]
    assert history(tmp_path / "parts") == history(tmp_path / "whole")
    assert _kept(tmp_path / "parts") == _kept(tmp_path / "whole")
    assert _kept(tmp_path / "whole")[:2] == ([4, 8], 4)
    assert (
        loop.train(config, tmp_path / "parts", strict_restore=True) == 0
    )  # the checksums are valid


def test_checkpoint_made_only_by_a_stop_is_not_ranked(light, config, tmp_path):
    config.checkpoint.every_epochs = 0  # an uninterrupted run saves only step 8
    result = light.result

    def stop_after(step):  # the evaluation is complete
        if step == 4:
            _stop()
        return result(step)

    light.result = stop_after
    assert loop.train(config, tmp_path) == 143
    assert Checkpoints(tmp_path / "checkpoints", write=False).steps() == [4]
    light.result = result
    assert loop.train(config, tmp_path) == 0
    assert light.evaluated == [4, 8]
    assert Checkpoints(tmp_path / "checkpoints", write=False).find("best") == 8


def test_a_stop_while_the_loop_waits_for_input_saves(light, config, tmp_path, history):
    assert loop.train(config, tmp_path / "whole") == 0
    stalled = threading.Event()

    def stall(step):
        if step == 8:  # read while step 6 waits for its batch
            threading.Timer(0.1, _stop).start()
            stalled.wait(60)

    light.on_input = stall
    began = time.monotonic()
    assert loop.train(config, tmp_path / "parts") == 143
    assert time.monotonic() - began < 50
    assert light.steps[8:] == [1, 2, 3, 4, 5]
    light.on_input = lambda step: None
    assert loop.train(config, tmp_path / "parts") == 0
    assert history(tmp_path / "parts") == history(tmp_path / "whole")


def test_metrics_that_cannot_be_added_are_reported_and_added_at_the_next_start(
    light, config, tmp_path, monkeypatch, history, capsys
):
    """The disk is full when the last evaluation, interrupted by a stop, is repeated."""
    light.on_batch = lambda at: _stop() if at == 8 else None
    assert loop.train(config, tmp_path / "parts") == 143
    light.on_batch = lambda at: None
    capsys.readouterr()

    def full(directory, name):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for _ in range(2):  # the second time, metrics.jsonl already has the evaluation
        with monkeypatch.context() as patch:
            patch.setattr(integrity, "add_checksum", full)
            with pytest.raises(UserError, match="evaluation of step 8 could not be saved in"):
                loop.train(config, tmp_path / "parts")
        printed = capsys.readouterr().out
        assert "checkpoint 8 could not get its metrics: No space left on device" in printed
        assert "finished" not in printed
    assert loop.train(config, tmp_path / "parts") == 0
    assert loop.train(config, tmp_path / "whole") == 0
    assert history(tmp_path / "parts") == history(tmp_path / "whole")
    assert _kept(tmp_path / "parts") == _kept(tmp_path / "whole")
    assert loop.train(config, tmp_path / "parts", strict_restore=True) == 0


def test_stalled_input_is_closed_last(light, config, tmp_path, monkeypatch):
    """Closing it may hang; the process then exits, after everything else is written."""
    events = []

    def noting(name, function):
        return lambda *args: (function(*args), events.append(name))[0]

    def batches(kind, inner):
        try:
            yield from inner
        finally:
            events.append(f"{kind} closed")

    def train_batches(*args, **kwargs):
        yield from batches("input", light.train_batches(*args, **kwargs))

    def evaluator(evaluation):
        def evaluate(state, watched):
            for _ in watched(batches("evaluation", range(3))):
                _stop()

        return evaluate

    class Deadline:
        def cancel(self):
            events.append("disarmed")

    monkeypatch.setattr(loop.pipeline, "train_batches", train_batches)
    monkeypatch.setattr(loop, "Evaluator", evaluator)
    monkeypatch.setattr(loop.Recorder, "close", noting("recorder", loop.Recorder.close))
    monkeypatch.setattr(Lock, "__exit__", noting("running", Lock.__exit__))
    monkeypatch.setattr(stopping, "exit_soon", lambda code: (events.append(code), Deadline())[1])
    assert loop.train(config, tmp_path) == 143
    assert events[:3] == ["recorder", "running", 143]
    assert sorted(events[3:5]) == ["evaluation closed", "input closed"]
    assert events[5:] == ["disarmed"]


def test_a_stop_before_the_first_step_exits_with_its_code(light, config, tmp_path, capsys):
    light.on_input = lambda step: os.kill(os.getpid(), signal.SIGINT)
    assert loop.train(config, tmp_path) == 130
    assert "before the first step" in capsys.readouterr().out
    assert Checkpoints(tmp_path / "checkpoints", write=False).steps() == []


def test_several_processes_stop_an_evaluation_at_the_agreed_batch(
    light, config, tmp_path, monkeypatch
):
    """This process did not receive the signal; only the agreement stops it."""
    asked = []

    def agreement(mesh):
        def agreed(count, received):
            asked.append((count, received))
            return signal.SIGTERM if len(asked) == 5 else None

        return agreed

    monkeypatch.setattr(run_context, "StopAgreement", agreement)
    assert loop.train(config, tmp_path) == 143
    assert asked == [(1, None), (2, None), (3, None), (1, None), (2, None)]
    assert Checkpoints(tmp_path / "checkpoints", write=False).steps() == [4]


def test_repeated_signal_is_ignored_but_a_later_one_exits_at_once(monkeypatch):
    """srun, scancel and a sweep signal every process, and their parents forward the signal."""
    ended, now = [], [100.0]
    monkeypatch.setattr(stopping.os, "_exit", ended.append)
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    with StopSignal() as stop:
        for number, later in ((15, 0), (15, 0.6), (2, 1.0), (15, 1.0)):
            now[0] += later
            os.kill(os.getpid(), number)
            assert stop.received == 15
        assert ended == [143]
