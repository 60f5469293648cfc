"""Continuing with another batch size: records, length and learning rate."""

import collections
import dataclasses
import math

import numpy as np
import pytest
from conftest import tiny_config
from hypothesis import example, given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from imagenet_jax import train as loop
from imagenet_jax.data.sampler import Sampler, in_steps
from imagenet_jax.errors import UserError
from imagenet_jax.training.checkpoint import Position
from imagenet_jax.training.data_position import BatchOrder, Rewind, get_data_position, resume_at
from imagenet_jax.training.experiment import make_experiment

COUNT = 1437  # training digits


@pytest.fixture
def runs(digits_path, light):
    """runs(batch_size, ...): an experiment."""

    def make(batch_size, epochs=2.0, **fields):
        config = tiny_config(digits_path)
        config.batch_size, config.epochs = batch_size, epochs
        for field, value in fields.items():
            config.data[field] = value
        return make_experiment(config)

    return make


def _at(run, step):
    """Return the position that a checkpoint of `step` stores."""
    return Position(data=get_data_position(run.sampler, step), interval={})


def _records(run, first, last):
    """Return (epoch, index) of all rows of steps first + 1 .. last."""
    found = []
    for step in range(first, last):
        epochs, indices, _ = run.sampler.rows(step, range(run.sampler.batch_size))
        found += zip(epochs.tolist(), indices.tolist(), strict=True)
    return found


def test_each_record_is_used_once_per_epoch_for_any_batch_sizes(runs):
    run, step, taken = runs(48), 0, []
    for batch_size, last in ((96, 5), (24, 9), (48, 60)):
        taken += _records(run, step, last)
        position, step = _at(run, last), last
        run, note = resume_at(runs(batch_size), position, step, [])
        assert not note
    taken += _records(run, step, run.total_steps)
    counts = collections.Counter(taken)
    for epoch in range(2):
        assert [counts[epoch, i] for i in range(COUNT)] == [1] * COUNT
    trained = 5 * 48 + 4 * 96 + 51 * 24
    assert run.total_steps == 60 + math.ceil((2 * COUNT - trained) / 48)
    assert run.epoch_at(60) == pytest.approx(trained / COUNT)
    assert run.epoch_at(run.total_steps) == pytest.approx(2, abs=48 / COUNT)


def test_schedules_and_evaluation_steps_follow_the_records(runs):
    position = _at(runs(48), 10)
    run, _ = resume_at(runs(96), position, 10, [])
    total = math.ceil(2 * COUNT / 96)
    for step in (10, 14, 30):
        done = (480 + (step - 10) * 96) / 96  # steps of 96
        rate = 0.05 * 96 / 48 * (1 + math.cos(math.pi * done / total)) / 2
        assert float(run.parts.schedule(step)) == pytest.approx(rate, rel=1e-5)
    # The first epoch has 957 records left: 9.97 batches of 96.
    assert run.steps_at(1.0) == {20, 10 + math.ceil((2 * COUNT - 480) / 96)}


def test_unchanged_run_continues_unchanged(runs):
    run = runs(48)
    assert resume_at(run, _at(run, 7), 7, []) == (run, "")
    # After a rewind that skipped batches 5 and 6, step 7 trains on batch 8.
    rewinds = [Rewind(7, 5, (5, 6), 48)]
    assert resume_at(run, _at(run, 9), 7, rewinds) == (run, "")
    # Also from the checkpoint of step 5, which is older than the rewind.
    assert resume_at(run, _at(run, 5), 5, rewinds) == (run, "")


def test_inexact_batch_size_changes_are_refused(runs):
    with pytest.raises(
        UserError, match=r"batch_size: 48 -> 96: .*repeated_aug = 3 .*batch_size=48"
    ):
        resume_at(runs(96, repeated_aug=3), _at(runs(48, repeated_aug=3), 5), 5, [])
    with pytest.raises(UserError, match=r"remainder = 'drop'.*240 records.*batches of 96"):
        resume_at(runs(96, remainder="drop"), _at(runs(48, remainder="drop"), 5), 5, [])
    with pytest.raises(UserError, match="counts batches instead of records"):
        resume_at(runs(48), Position(data={"next_index": 5}, interval={}), 5, [])


@pytest.mark.parametrize("done", [4, 29, 33])
def test_dropped_remainder_continues_at_whole_batches(runs, done):
    """An epoch is 29 batches of 48 or 14 of 96; 33 batches of 48 end 192 records into epoch 2."""
    run, note = resume_at(
        runs(96, remainder="drop"), _at(runs(48, remainder="drop"), done), done, []
    )
    assert not note
    epoch, batches = divmod(done, 29)
    left = _records(run, done, run.total_steps)
    expected = runs(96, remainder="drop").sampler.records(
        epoch * 14 * 96 + batches * 48, 2 * 14 * 96
    )
    assert left == list(zip(expected[0].tolist(), expected[1].tolist(), strict=True))


def test_changed_order_within_an_epoch_is_reported(runs, digits_path):
    other = tiny_config(digits_path)
    other.seed = 1
    before = runs(48, epochs=3.0)
    run, note = resume_at(make_experiment(other), _at(before, 2), 2, [])
    assert "within epoch 1" in note
    # Other images: at the same fraction of the epoch.
    run, note = resume_at(runs(48, train_split="train[:50%]"), _at(before, 15), 15, [])
    assert "within epoch 1" in note
    assert run.epoch_at(15) == pytest.approx(15 * 48 / COUNT, abs=1 / 700)


def test_rewind_after_a_batch_size_change_skips_its_batches(runs):
    """The checkpoint is after 5 batches of 96; then batches 5 and 6 of size 48 are skipped."""
    position = _at(runs(96), 5)
    run, note = resume_at(runs(48), position, 5, [Rewind(7, 5, (5, 6), 48)])
    first = BatchOrder([Rewind(7, 5, (5, 6), 48)]).batch_at(6)
    _, indices, _ = run.sampler.rows(first, range(48))
    start = 5 * 96 + 2 * 48
    assert indices.tolist() == runs(48).sampler.records(start, start + 48)[1].tolist()
    assert not note


def test_changed_data_with_a_dropped_remainder_is_reported(runs):
    """Continue at the same fraction of the epoch, rounded down to a whole batch."""
    before = runs(48, remainder="drop")  # epochs of 29 batches
    half = runs(48, remainder="drop", train_split="train[:50%]")  # of 14
    run, note = resume_at(half, _at(before, 20), 20, [])
    assert "within epoch 1" in note
    assert run.epoch_at(20) == pytest.approx(20 / 29, abs=1 / 14)
    # Epochs with as many batches but more records.
    more = runs(48, remainder="drop", train_split="train[:1400]")
    assert "within epoch 1" in resume_at(more, _at(before, 20), 20, [])[1]


def test_changed_data_with_repeated_records_continues_at_a_whole_batch(runs):
    half = runs(48, repeated_aug=3, train_split="train[:50%]")
    run, note = resume_at(half, _at(runs(48, repeated_aug=3), 19), 19, [])
    assert "within epoch 1" in note
    _, indices, _ = run.sampler.rows(19, range(48))
    assert sorted(np.unique(indices, return_counts=True)[1]) == [3] * 16
    assert run.epoch_at(19) == pytest.approx(19 * 48 / COUNT, abs=48 / 718)


def test_fewer_epochs_than_trained_raise_and_the_suggested_number_works(runs):
    position = _at(runs(48), 31)  # 1.0355 epochs
    with pytest.raises(UserError, match=r"less than the 1\.035 epochs.*epochs=1\.01879 or"):
        resume_at(runs(48, epochs=1.0), position, 31, [])
    assert resume_at(runs(48, epochs=1.01879), position, 31, [])[0].total_steps == 31
    # A finished run is finished with any batch size.
    for batch_size in (8, 96):
        run, _ = resume_at(runs(batch_size, epochs=1.0), _at(runs(48), 30), 30, [])
        assert run.total_steps == 30


@dataclasses.dataclass(frozen=True)
class Length:
    """The part of an Experiment that `resume_at` reads if the batch size does not change."""

    config: ConfigDict
    sampler: Sampler
    total_steps: int


def _length(epochs, sampler):
    total = math.ceil(in_steps(epochs, sampler.steps_per_epoch))
    return Length(ConfigDict({"epochs": epochs}), sampler, total)


@given(st.integers(1, 15_000_000), st.integers(2, 2_000_000), st.integers(1, 70_000))
@example(1_281_167, 750_900, 256)
@example(1437, 31, 48)
def test_suggested_epochs_work_for_any_size(length, step, batch_size):
    sampler = Sampler(length, seed=0, batch_size=batch_size)
    position = Position(data=get_data_position(sampler, step), interval={})
    with pytest.raises(UserError, match=r"use --config\.epochs=[\d.]+ or more") as refused:
        resume_at(_length(1e-9, sampler), position, step, [])
    epochs = float(str(refused.value).partition("epochs=")[2].partition(" ")[0])
    assert resume_at(_length(epochs, sampler), position, step, [])[0].total_steps >= step
    assert epochs * length < step * batch_size * (1 + 1e-5)


def test_suggested_epochs_work_with_more_data_than_before(runs):
    position = _at(runs(48, train_split="train[:25%]"), 20)
    with pytest.raises(UserError, match="less than the") as refused:
        resume_at(runs(48, epochs=0.01), position, 20, [])
    epochs = float(str(refused.value).partition("epochs=")[2].partition(" ")[0])
    resume_at(runs(48, epochs=epochs), position, 20, [])


def test_loop_trains_on_the_remaining_records(light, tiny, tmp_path, history):
    tiny.epochs = 1.0
    assert loop.train(tiny, tmp_path, stop_after=3) == 0
    tiny.batch_size, tiny.resume_with_changes = 96, True
    assert loop.train(tiny, tmp_path) == 0
    steps = 3 + math.ceil((COUNT - 3 * 48) / 96)
    assert len(light.records) == steps
    taken = np.concatenate(light.records)[np.concatenate(light.epochs) == 0]
    assert sorted(taken) == list(range(COUNT))
    last = [line for line in history(tmp_path) if line["split"] == "train"][-1]
    assert (last["step"], last["epoch"]) == (steps, pytest.approx((3 * 48 + 14 * 96) / COUNT))
    tiny.epochs = 0.5
    with pytest.raises(UserError, match="epochs = 0.5 is less than"):
        loop.train(tiny, tmp_path)
