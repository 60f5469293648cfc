"""Progressive resizing: FFCV's formula, few shapes, the same in every part of a run."""

import math

import numpy as np
import pytest
from conftest import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_jax import config as config_io
from imagenet_jax.data import pipeline, sources
from imagenet_jax.data.pipeline import Resolution
from imagenet_jax.errors import UserError


def _published(epoch, low, high, start, final):
    """The recipe's rule: interpolate between epochs, round to a multiple of 32."""
    side = float(np.interp(epoch, [low, high], [start, final]))
    return int(np.round(side / 32)) * 32


def test_the_published_schedule_of_ffcv():
    resolution = Resolution(160, 192, (35.0, 41.0), 32, steps_per_epoch=10.5)
    for step in range(0, 700, 3):
        want = _published(math.floor(step / 10.5), 35, 41, 160, 192)
        assert resolution.at(step) == want or want not in (160, 192)
    assert resolution.at(0) == 160 and resolution.at(10**6) == 192
    assert {resolution.at(step) for step in range(945)} == {160, 192}


@settings(max_examples=60)
@given(
    start=st.integers(1, 8), more=st.integers(0, 8),
    low=st.floats(0, 20), length=st.floats(0.5, 30),
    multiple=st.sampled_from([1, 8, 32]), steps=st.floats(0.5, 40),
)  # fmt: skip
def test_it_grows_in_few_steps_within_its_bounds(start, more, low, length, multiple, steps):
    start, final = 32 * start, 32 * (start + more)
    resolution = Resolution(start, final, (low, low + length), multiple, steps)
    sides = [resolution.at(step) for step in range(0, int(steps * (low + length + 2)) + 2)]
    assert sides[0] >= start and sides[-1] == final
    assert all(a <= b for a, b in zip(sides, sides[1:], strict=False))
    assert len(set(sides)) <= (final - start) // multiple + 2
    assert {side for step, side in enumerate(sides) if step < steps * math.floor(low)} <= {start}


def test_batches_take_the_side_of_their_step_wherever_a_run_begins(digits_path):
    config = tiny_config(digits_path)
    config.augment.start_size, config.augment.image_size = 8, 24
    config.augment.size_ramp, config.augment.size_multiple = (1.0, 3.0), 8
    source = sources.Subset(sources.open_source(config.data, "train"), np.arange(40))
    sampler = pipeline.make_sampler(
        source, config.data, seed=0, batch_size=16
    )  # 2.5 steps an epoch

    def sides(start):
        batches = pipeline.train_batches(source, sampler, config, total_steps=10, start_step=start)
        return [batch["image"].shape[1:3] for batch in batches]

    want = [(s, s) for s in [8] * 5 + [16] * 3 + [24] * 2]
    assert sides(0) == want
    assert sides(4) == want[4:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size_ramp": (1.0, 2.0)}, r"size_ramp = \(1\.0, 2\.0\) does nothing"),
        ({"start_size": 20, "size_ramp": (0.0, 2.0)}, "start_size = 20 must be at most .* 16"),
        ({"start_size": 8}, r"size_ramp = \(0\.0, 0\.0\) must be"),
        ({"start_size": 8, "size_ramp": (3.0, 2.0)}, r"size_ramp = \(3\.0, 2\.0\) must be"),
    ],
)
def test_bad_values(changes, message):
    config = tiny_config("x")
    config.augment.update(changes)
    with pytest.raises(UserError, match=message):
        config_io.check(config)
