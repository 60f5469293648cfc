"""The training loop in this process on 8 devices: resuming, signals, NaN, files of the workdir."""

import json
import os
import signal

import jax
import numpy as np
import pytest
from conftest import tiny_config

from imagenet_jax import train as loop
from imagenet_jax.errors import UserError
from imagenet_jax.logs.throughput import MEASURED
from imagenet_jax.training.checkpoint import Checkpoints
from imagenet_jax.training.experiment import make_experiment
from imagenet_jax.training.metric_window import NonFiniteError


def _final(config, workdir):
    """Return (step, state on the host, position) of the last checkpoint."""
    checkpoints = Checkpoints(workdir / "checkpoints", write=False)
    step = checkpoints.find("latest")
    state, position = checkpoints.restore(make_experiment(config).abstract, step)
    return step, jax.device_get(state), position


def _assert_same_run(config, a, b):
    (step_a, state_a, position_a), (step_b, state_b, position_b) = (
        _final(config, a),
        _final(config, b),
    )
    assert step_a == step_b
    assert position_a == position_b
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(state_a), jax.tree.leaves(state_b), strict=True
    ):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))
    assert _history(a) == _history(b)
    assert (a / "first_steps.jsonl").read_text() == (b / "first_steps.jsonl").read_text()


def _history(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]


@pytest.fixture
def stop_after(monkeypatch):
    """Send this process a signal when the loop asks for the batch after `step`."""

    def arm(step, number=signal.SIGTERM):
        real = loop.prefetch_to_device

        def batches(*args):
            for i, batch in enumerate(real(*args)):
                if i == step:
                    os.kill(os.getpid(), number)
                yield batch

        monkeypatch.setattr(loop, "prefetch_to_device", batches)

    yield arm
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("model", "stop", "optimizer"),
    [
        ("small_cnn", 3, "sgd"),
        *(
            pytest.param("resnet18", *case, marks=pytest.mark.full)
            for case in ((1, "sgd"), (3, "sgd"), (5, "schedule_free_adamw"))
        ),
    ],
)
def test_stopped_and_resumed_run_is_bit_identical_to_an_uninterrupted_one(
    digits_path, tmp_path, stop_after, monkeypatch, model, stop, optimizer
):
    """Stops inside and at the end of a logging interval of 2 steps, in mid-epoch."""
    config = tiny_config(digits_path, model)
    config.optim.name = optimizer
    assert loop.train(config, tmp_path / "whole") == 0
    stop_after(stop)
    assert loop.train(config, tmp_path / "parts") == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert Checkpoints(tmp_path / "parts" / "checkpoints", write=False).steps() == [stop]
    assert loop.train(config, tmp_path / "parts") == 0
    _assert_same_run(config, tmp_path / "whole", tmp_path / "parts")


def test_interrupt_saves_and_exits_130(quick, tmp_path, stop_after):
    stop_after(2, signal.SIGINT)
    assert loop.train(quick, tmp_path) == 130
    assert Checkpoints(tmp_path / "checkpoints", write=False).steps() == [2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # restored


def test_restarting_a_finished_run_changes_nothing(quick, tmp_path, capsys):
    assert loop.train(quick, tmp_path) == 0
    history = (tmp_path / "metrics.jsonl").read_text()
    assert loop.train(quick, tmp_path) == 0
    assert (tmp_path / "metrics.jsonl").read_text() == history
    assert "finished: 8 steps" in capsys.readouterr().out


def test_workdir_has_the_documented_files(quick, tmp_path):
    quick.log.tensorboard = True
    assert loop.train(quick, tmp_path) == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["optim"]["base_lr"] == 0.05
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert {"git_revision", "git_dirty", "packages", "devices", "data"} <= provenance.keys()
    assert provenance["packages"]["jax"] == jax.__version__
    history = _history(tmp_path)
    train = [line for line in history if line["split"] == "train"]
    assert [line["step"] for line in train] == [2, 4, 6, 8]
    assert train[0]["epoch"] == pytest.approx(2 * 48 / 1437)
    first = [json.loads(x) for x in (tmp_path / "first_steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in first] == list(range(1, 9))
    for line, a, b in zip(train, first[::2], first[1::2], strict=True):
        assert line["loss"] == pytest.approx((a["loss"] + b["loss"]) / 2)
        assert line["grad_norm"] == pytest.approx((a["grad_norm"] + b["grad_norm"]) / 2)
    evaluated = [line for line in history if line["split"] == "validation"]
    assert [(line["step"], line["weights"]) for line in evaluated] == [(8, "ema"), (8, "raw")]
    assert all(line["count"] == 360 for line in evaluated)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(e.step, e.value) for e in events.Scalars("train/loss")]
    assert points == [(line["step"], pytest.approx(line["loss"])) for line in train]
    assert "validation/ema/top1" in events.Tags()["scalars"]


def test_metrics_file_is_truncated_to_the_checkpoint(quick, tmp_path, stop_after, monkeypatch):
    loop.train(quick, tmp_path / "whole")
    stop_after(5)
    loop.train(quick, tmp_path / "parts")
    monkeypatch.undo()
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as f:  # what a SIGKILL may leave
        f.write(json.dumps({"step": 6, "split": "train", "loss": 0}) + "\n" + '{"step": 8, "sp')
    loop.train(quick, tmp_path / "parts")
    assert _history(tmp_path / "parts") == _history(tmp_path / "whole")


@pytest.mark.full
def test_keeps_the_last_n_and_the_best(quick, tmp_path):
    quick.checkpoint.every_epochs = quick.eval.every_epochs = 48 / 1437  # every step
    quick.checkpoint.keep = 2
    assert loop.train(quick, tmp_path) == 0
    best = max(
        (line for line in _history(tmp_path) if line.get("weights") == "ema"),
        key=lambda line: (line["top1"], line["step"]),
    )
    checkpoints = Checkpoints(tmp_path / "checkpoints", write=False)
    assert checkpoints.steps() == sorted({best["step"], 7, 8})
    assert checkpoints.find("best") == best["step"]
    tops = {line["step"]: line["top1"] for line in _history(tmp_path) if "top1" in line}
    assert max(tops.values()) > 0


def test_nonfinite_loss_stops_the_run_and_keeps_the_last_good_checkpoint(quick, tmp_path):
    quick.checkpoint.every_epochs = 3 * 48 / 1437
    quick.optim.update({"schedule": "polynomial", "base_lr": 0.0, "end_lr": 1e38, "momentum": 0.0})
    with pytest.raises(NonFiniteError, match=r"at step \d+, learning rate .*last checkpoint"):
        loop.train(quick, tmp_path)
    kept = Checkpoints(tmp_path / "checkpoints", write=False).steps()
    for step in kept:
        state, _ = Checkpoints(tmp_path / "checkpoints", write=False).restore(
            make_experiment(quick).abstract, step
        )
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state)))
    assert not (tmp_path / "running.json").exists()


def test_workdir_of_another_config_is_refused_unless_allowed(quick, tmp_path, digits_path):
    loop.train(quick, tmp_path)
    before = (tmp_path / "config.json").read_text()
    other = tiny_config(digits_path, "small_cnn")
    other.optim.base_lr = 0.01
    other.seed = 5
    with pytest.raises(UserError, match=r"optim\.base_lr: 0\.05 -> 0\.01; seed: 0 -> 5") as e:
        loop.train(other, tmp_path)
    assert "resume_with_changes=true" in str(e.value)
    assert (tmp_path / "config.json").read_text() == before
    other.resume_with_changes = True
    assert loop.train(other, tmp_path) == 0
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 5


def test_workdir_of_other_images_is_refused(quick, tmp_path, monkeypatch):
    loop.train(quick, tmp_path)
    path = tmp_path / "provenance.json"
    record = json.loads(path.read_text())
    record["data"]["train"] = "0123456789abcdef"
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"images of split 'train': 0123456789abcdef -> "):
        loop.train(quick, tmp_path)


@pytest.mark.full
def test_operational_fields_may_change_on_resumption(quick, tmp_path, stop_after, monkeypatch):
    stop_after(3)
    loop.train(quick, tmp_path)
    monkeypatch.undo()
    quick.data.threads, quick.checkpoint.keep, quick.mesh.fsdp = 1, 7, 2
    assert loop.train(quick, tmp_path) == 0


@pytest.mark.full
def test_stop_after_gives_the_first_steps_of_a_full_run(quick, tmp_path, capsys):
    """The schedule is that of the full run, which the same workdir can continue."""
    assert loop.train(quick, tmp_path / "whole") == 0
    assert loop.train(quick, tmp_path / "first", stop_after=3) == 0
    assert "ended early, as asked: 3 steps" in capsys.readouterr().out
    whole, first = (
        (tmp_path / name / "first_steps.jsonl").read_text().splitlines()
        for name in ("whole", "first")
    )
    assert first == whole[:3]
    assert loop.train(quick, tmp_path / "first") == 0
    _assert_same_run(quick, tmp_path / "whole", tmp_path / "first")
