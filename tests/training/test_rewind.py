"""Rewinds after a nonfinite loss: skipped batches and recorded lines."""

import json
import math

import jax
import numpy as np
import pytest
from conftest import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_jax import config as config_io
from imagenet_jax import train as loop
from imagenet_jax.errors import UserError
from imagenet_jax.logs.throughput import MEASURED
from imagenet_jax.training.data_position import (
    BatchOrder,
    Rewind,
    check_rewinds,
    plan_rewind,
    read_rewinds,
    write_rewinds,
)
from imagenet_jax.training.metric_window import NonFiniteError

WINDOWS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=5)


@settings(max_examples=200)
@given(WINDOWS, st.integers(0, 30), st.integers(0, 30))
def test_steps_train_on_the_remaining_batches_in_order(windows, done, more):
    rewinds = [Rewind(0, 0, (first, first + length), 48) for first, length in windows]
    skipped = {b for first, length in windows for b in range(first, first + length + 1)}
    left = [b for b in range(200) if b not in skipped]
    batches = BatchOrder(rewinds)
    assert [batches.batch_at(step) for step in range(1, 61)] == left[:60]
    spans = batches.ranges(done, done + more)
    assert [b for start, stop in spans for b in range(start, stop)] == left[done : done + more]
    assert all(start < stop for start, stop in spans)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20), st.integers(1, 9)), max_size=4))
def test_rewind_does_not_change_steps_before_its_checkpoint(events):
    """The batch of the nonfinite step is not trained on again."""
    rewinds = []
    for after, checkpoint, skip in events:
        before, bad = BatchOrder(rewinds), checkpoint + after
        rewinds.append(plan_rewind(rewinds, bad, checkpoint, skip, 48))
        now = BatchOrder(rewinds)
        for step in range(1, checkpoint + 1):
            assert now.batch_at(step) == before.batch_at(step)
        remaining = {now.batch_at(step) for step in range(1, 100)}
        assert before.batch_at(bad) not in remaining
        left_out = {before.batch_at(s) for s in range(1, 60)} - remaining
        assert left_out == {
            before.batch_at(s) for s in range(max(checkpoint, bad - skip) + 1, bad + 1)
        }


def test_list_of_rewinds_round_trips_and_damage_is_reported(tmp_path):
    assert read_rewinds(tmp_path) == []
    rewinds = [Rewind(9, 4, (6, 8), 256), Rewind(30, 20, (25, 32), 256)]
    write_rewinds(tmp_path, rewinds)
    assert read_rewinds(tmp_path) == rewinds
    check_rewinds(rewinds, 256)
    with pytest.raises(UserError, match=r"batch_size = 128, but .*--config.batch_size=256"):
        check_rewinds(rewinds, 128)
    for text in ("", "{}[", '[{"checkpoint": 1}]', "[3]"):
        (tmp_path / "rewinds.json").write_text(text)
        with pytest.raises(UserError, match="rewinds.json cannot be read"):
            read_rewinds(tmp_path)


def test_fields_without_effect_are_refused(digits_path):
    for field, value in (("max_rewinds", 5), ("skip_steps", 7)):
        config = tiny_config(digits_path)
        config.nonfinite[field] = value
        with pytest.raises(UserError, match=f"nonfinite.{field} = {value}.*nonfinite.policy"):
            config_io.check(config)
        config.nonfinite.policy = "rewind"
        config_io.check(config)


@pytest.fixture
def seen(monkeypatch):
    """Labels of batch k are all k; the batches in `bad` make the loss infinite."""
    seen, bad = [], set()
    real = loop.compile_train_step
    iterate = loop.prefetch_to_device

    def batches(source, mesh):
        for batch in iterate(source, mesh):
            seen.append(int(np.asarray(batch["label"], np.int64).dot(np.arange(48)) % 1009))
            yield batch

    def compiled(*args):
        step = real(*args)

        def run(state, batch):
            state, metrics = step(state, batch)
            if seen[-1] in bad:
                metrics = metrics | {"loss": jax.numpy.float32(math.inf)}
            return state, metrics

        run.lower = step.lower
        return run

    monkeypatch.setattr(loop, "prefetch_to_device", batches)
    monkeypatch.setattr(loop, "compile_train_step", compiled)
    return seen, bad


def _fingerprints(config):
    """Return what `seen` records for batches 0, 1, ... of the run."""
    from imagenet_jax.data import pipeline
    from imagenet_jax.training.experiment import make_experiment

    run = make_experiment(config)
    return [
        int(np.asarray(batch["label"], np.int64).dot(np.arange(48)) % 1009)
        for batch in pipeline.train_batches(run.source, run.sampler, config, total_steps=24)
    ]


def test_training_rewinds_skips_the_window_and_records_it(quick, tmp_path, seen, capsys):
    taken, bad = seen
    quick.checkpoint.every_epochs = 2 * 48 / 1437
    quick.nonfinite.policy, quick.nonfinite.skip_steps = "rewind", 2
    prints = _fingerprints(quick)
    assert len(set(prints)) == len(prints)
    bad.add(prints[5])  # step 6; noticed when it is saved, and the checkpoint before is of step 4
    assert loop.train(quick, tmp_path) == 0
    back = len(taken) - 4
    assert taken[:6] == prints[:6]
    assert taken[back:] == [*prints[6:10]]  # steps 5 to 8, without batches 4 and 5
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    rewinds = [line for line in lines if line["split"] == "rewind"]
    assert [{k: v for k, v in line.items() if k not in MEASURED} for line in rewinds] == [
        {"step": 4, "split": "rewind", "nonfinite_step": 6, "checkpoint": 4,
         "skipped_batches": [4, 5], "batch_size": 48}
    ]  # fmt: skip
    assert [line["step"] for line in lines if line["split"] == "train"] == [2, 4, 6, 8]
    assert all(math.isfinite(line["loss"]) for line in lines if line["split"] == "train")
    said = capsys.readouterr().out
    assert "not finite at step 6: rewinding to step 4 and skipping batches 4 to 5" in said
    assert read_rewinds(tmp_path) == [Rewind(6, 4, (4, 5), 48)]
    # A restart of the run uses the list.
    before = (tmp_path / "metrics.jsonl").read_text()
    assert loop.train(quick, tmp_path) == 0
    assert (tmp_path / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_training_stops_after_max_rewinds_and_by_default_at_once(quick, tmp_path, seen):
    _, bad = seen
    bad.update(_fingerprints(quick)[2:])
    with pytest.raises(NonFiniteError, match="loss is inf at step 3.*nonfinite.policy=rewind"):
        loop.train(quick, tmp_path / "stop")
    assert not (tmp_path / "stop" / "rewinds.json").exists()
    quick.nonfinite.policy, quick.nonfinite.skip_steps = "rewind", 1
    quick.nonfinite.max_rewinds = 2
    with pytest.raises(NonFiniteError, match="at step 3.*2 rewinds"):
        loop.train(quick, tmp_path / "rewind")
    assert read_rewinds(tmp_path / "rewind") == [Rewind(3, 0, (2, 2), 48), Rewind(3, 0, (3, 3), 48)]


def test_rewind_before_the_first_checkpoint_with_another_batch_size(light, quick, tmp_path):
    """Each start continues with it; with the old size its windows would be other batches."""
    quick.epochs, quick.nonfinite.policy, quick.nonfinite.skip_steps = 0.5, "rewind", 1
    assert loop.train(quick, tmp_path, stop_after=3) == 0
    quick.batch_size, quick.resume_with_changes = 24, True
    compiled = loop.compile_train_step
    failing = iter([True])

    def compile_failing(*args):
        step = compiled(*args)

        def run(state, batch):
            state, metrics = step(state, batch)
            if light.steps[-1] == 5 and next(failing, False):
                metrics["loss"] = jax.numpy.float32(math.nan)
            return state, metrics

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compile_train_step", compile_failing)
        assert loop.train(quick, tmp_path, stop_after=8) == 0
    assert read_rewinds(tmp_path) == [Rewind(5, 3, (4, 4), 24)]
    taken = np.concatenate(light.records[-5:])  # steps 4 to 8, without the batch of step 5
    from imagenet_jax.training.experiment import make_experiment

    _, indices, _ = make_experiment(quick).sampler.records(3 * 48, 3 * 48 + 6 * 24)
    assert taken.tolist() == np.delete(indices, range(24, 48)).tolist()
    quick.batch_size = 48
    with pytest.raises(UserError, match="--config.batch_size=24"):
        loop.train(quick, tmp_path)
    quick.batch_size = 24
    assert loop.train(quick, tmp_path) == 0
