"""In a run of several processes, process 0 makes the decisions that depend on files."""

import json
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from imagenet_jax import eval as eval_command
from imagenet_jax.classify import evaluate_weights
from imagenet_jax.errors import UserError
from imagenet_jax.runtime import processes
from imagenet_jax.runtime import workdir as workdirs
from imagenet_jax.runtime.processes import run_on_first
from imagenet_jax.training.data_position import Rewind, read_rewinds, write_rewinds
from imagenet_jax.training.load_weights import CheckpointReader


@pytest.fixture
def in_two_processes(monkeypatch):
    """in_two_processes(f) returns [f(0), f(1)] from two threads that pose as two processes.

    An exception of f is returned. Waiting for a process that does not come fails.
    """
    local, sent = threading.local(), [None, None]

    def index():
        return getattr(local, "index", 0)

    def exchange(value):
        sent[index()] = np.asarray(value)
        meeting.wait()
        both = list(sent)
        meeting.wait()
        assert both[0].shape == both[1].shape
        assert both[0].dtype == both[1].dtype
        return both

    monkeypatch.setattr(jax, "process_index", index)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda x: exchange(x)[0])
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda x: np.stack(exchange(x)))

    def run(f):
        nonlocal meeting
        meeting = threading.Barrier(2, timeout=20)
        results = [None, None]

        def work(i):
            local.index = i
            try:
                results[i] = f(i)
            except BaseException as e:
                results[i] = e
            if isinstance(results[i], threading.BrokenBarrierError):
                meeting.abort()

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    meeting = None
    return run


@pytest.mark.parametrize(
    "value",
    [None, True, 68, "", "\u00e9", [], {"a": [1, {"b": None}]}, "x" * 70_000, list(range(999))],
)
def test_every_process_gets_the_value_of_process_0(in_two_processes, value):
    assert in_two_processes(lambda i: run_on_first(lambda: [value, "other"][i])) == [value, value]


def test_every_process_fails_if_process_0_does(in_two_processes):
    def decide(i):
        run_on_first(lambda: 1 / i)

    first, second = in_two_processes(decide)
    assert isinstance(first, ZeroDivisionError)
    assert isinstance(second, UserError)
    assert "process 0 failed" in str(second)


def test_nested_calls_run_directly(in_two_processes):
    seen = []
    answers = in_two_processes(lambda i: run_on_first(lambda: run_on_first(lambda: 10 + i) + 1))
    assert answers == [11, 11]
    assert in_two_processes(lambda i: run_on_first(lambda: seen.append(i))) == [None, None]
    assert seen == [0]


def test_a_single_process_initializes_no_device(monkeypatch):
    """A command that starts others, such as a sweep, must leave the devices to them."""
    monkeypatch.setattr(jax, "process_count", lambda: pytest.fail("asked the devices"))
    monkeypatch.setattr(jax, "process_index", lambda: pytest.fail("asked the devices"))
    assert run_on_first(lambda: 3) == 3
    assert processes.is_first()


def _classes(i):
    return [f"class {label} of {i}" for label in range(10)]


@pytest.fixture
def two_workdirs(saved_run, tmp_path):
    """Two workdirs with different configs, classes and checkpoints; only one has a rewind."""
    config = (saved_run.workdir / "config.json").read_text()
    for i, steps in enumerate(((68,), (68, 90))):
        workdir = tmp_path / str(i)
        for step in steps:
            (workdir / "checkpoints" / str(step)).mkdir(parents=True)
            (workdir / "checkpoints" / str(step) / "checksums.json").write_text("{}")
        (workdir / "config.json").write_text(config.replace('"seed": 0', f'"seed": {i}'))
        (workdir / "classes.json").write_text(json.dumps(_classes(i)))
    write_rewinds(tmp_path / "0", [Rewind(7, 4, (5, 6), 48)])
    return [tmp_path / "0", tmp_path / "1"]


def test_config_classes_and_rewinds_are_those_of_process_0(in_two_processes, two_workdirs):
    def read(i):
        workdir = two_workdirs[i]
        config = workdirs.read_config(workdir)
        return config.seed, workdirs.read_classes(workdir), read_rewinds(workdir)

    expected = (0, tuple(_classes(0)), [Rewind(7, 4, (5, 6), 48)])
    assert in_two_processes(read) == [expected, expected]
    for name in ("classes.json", "rewinds.json"):
        (two_workdirs[0] / name).unlink()
    assert in_two_processes(read) == [(0, (), [])] * 2


def test_whether_a_checkpoint_exists_is_decided_by_process_0(in_two_processes, two_workdirs):
    empty = two_workdirs[0] / "empty"
    workdir = [empty, two_workdirs[1]]
    assert in_two_processes(lambda i: workdirs.has_checkpoint(workdir[i])) == [False, False]
    assert in_two_processes(lambda i: workdirs.has_checkpoint(workdir[1 - i])) == [True, True]


class _Listed(CheckpointReader):
    """Checkpoints listed from the directory; their weights are not read."""

    def __init__(self, directory):
        self.directory = directory
        self._manager = self

    def reload(self):
        pass

    def all_steps(self):
        return [int(path.name) for path in self.directory.iterdir()]


@pytest.fixture
def fake_evaluation(monkeypatch):
    """Evaluation of the listed steps without a model; the result is the step in "top1"."""
    monkeypatch.setattr(
        evaluate_weights,
        "make_evaluation",
        lambda config, known: SimpleNamespace(
            config=config, abstract=None, source=SimpleNamespace(fingerprint="", class_names=())
        ),
    )
    monkeypatch.setattr(evaluate_weights, "open_to_read", lambda w, _: _Listed(w / "checkpoints"))
    monkeypatch.setattr(
        evaluate_weights, "Evaluator", lambda _: lambda step, _: [{"weights": "raw", "top1": step}]
    )
    monkeypatch.setattr(_Listed, "restore_weights", lambda self, _, step: step)


@pytest.mark.parametrize("which", ["latest", "68"])
def test_process_0_chooses_the_evaluated_step(
    in_two_processes, two_workdirs, fake_evaluation, which
):
    for workdir in two_workdirs:
        (workdir / "config.json").write_text((two_workdirs[0] / "config.json").read_text())
    results = in_two_processes(
        lambda i: [r["top1"] for r in evaluate_weights.evaluate_workdir(two_workdirs[i], which)]
    )
    assert results == [[68], [68]]
    assert len(list((two_workdirs[0] / "eval").iterdir())) == 1
    assert not (two_workdirs[1] / "eval").exists()


def test_process_0_decides_when_following_continues_and_ends(
    in_two_processes, two_workdirs, fake_evaluation, monkeypatch
):
    """Process 0 sees 68, then 90 and 95, then the end; process 1 alone would end at once."""
    asked = [0, 0]

    def is_training(workdir):
        i = two_workdirs.index(workdir)
        asked[i] += 1
        if asked[0] == 3:
            for step in (90, 95):
                (two_workdirs[0] / "checkpoints" / str(step)).mkdir(exist_ok=True)
        return i == 0 and asked[0] < 5

    monkeypatch.setattr(evaluate_weights, "is_training", is_training)
    monkeypatch.setattr(evaluate_weights, "_POLL_SECONDS", 0.01)

    def follow(i):
        found = evaluate_weights.evaluate_workdir(two_workdirs[i], "latest", follow=True)
        return [result["top1"] for result in found]

    assert in_two_processes(follow) == [[68, 90, 95], [68, 90, 95]]
    assert asked[1] == 0


def test_processes_with_different_commands_are_refused(
    in_two_processes, two_workdirs, fake_evaluation
):
    def evaluate(i):
        return list(evaluate_weights.evaluate_workdir(two_workdirs[0], "68", [("seed", str(i))]))

    for error in in_two_processes(evaluate):
        assert isinstance(error, UserError)
        assert "config of process 1 differs from that of process 0" in str(error)


def test_only_process_0_prints_and_writes_a_result(
    in_two_processes, two_workdirs, fake_evaluation, monkeypatch, tmp_path, capsys
):
    numbers = {"count": 360, "top5": 1.0, "loss": 0.5}
    monkeypatch.setattr(
        evaluate_weights,
        "Evaluator",
        lambda _: lambda *_: [{"weights": "raw", "top1": 0.25} | numbers],
    )

    def command(i):
        return eval_command.main([f"--workdir={two_workdirs[0]}", f"--json={tmp_path}/{i}.json"])

    assert in_two_processes(command) == [0, 0]
    assert capsys.readouterr().out.count("25.00%") == 1
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["0.json"]
