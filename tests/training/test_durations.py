"""Durations in epochs convert to steps as in exact arithmetic."""

import math
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imagenet_jax.config.fields import defaults
from imagenet_jax.data.pipeline import Resolution
from imagenet_jax.data.sampler import Sampler
from imagenet_jax.training import schedules
from imagenet_jax.training.experiment import Experiment
from imagenet_jax.training.layer_groups import make_fine_tuning

# 60 * 1328 / 320 = 249 exactly; the float product is larger.
SAMPLER = Sampler(1328, seed=0, batch_size=320)
PER_EPOCH = SAMPLER.steps_per_epoch


def test_a_milestone_and_a_warm_up_of_60_epochs():
    config = defaults().optim
    config.milestones = (60.0,)
    schedule = schedules.make_schedule(
        config, batch_size=256, steps_per_epoch=PER_EPOCH, total_steps=373
    )
    assert [float(schedule(t)) for t in (248, 249)] == pytest.approx([0.1, 0.01])
    config.update({"warmup_epochs": 60.0, "milestones": ()})
    schedule = schedules.make_schedule(
        config, batch_size=256, steps_per_epoch=PER_EPOCH, total_steps=373
    )
    assert float(schedule(248)) == pytest.approx(0.1 * 248 / 249)
    assert float(schedule(249)) == pytest.approx(0.1)


def test_frozen_epochs_and_crops():
    config = defaults()
    config.optim.freeze_epochs = 60.0
    assert make_fine_tuning(config, PER_EPOCH).frozen_steps == 249
    config.augment.update({"start_size": 32, "image_size": 64, "size_ramp": (59.0, 60.0)})
    resolution = Resolution.from_config(config.augment, PER_EPOCH)
    assert [resolution.at(step) for step in (248, 249)] == [32, 64]
    assert {resolution.at(step) for step in range(252)} == {32, 64}


class Run(NamedTuple):
    """The attributes that `Experiment.steps_at` reads."""

    total_steps: int = 373
    steps_per_epoch: Fraction = PER_EPOCH
    sampler: Sampler = SAMPLER

    def epoch_at(self, step):
        return Experiment.epoch_at(self, step)


@pytest.mark.parametrize("every", [0.25, 1.0, 7.0, 60.0, 1 / 3, 3 * 320 / 1328, 1e-30, 1e300])
def test_steps_at_equals_rational_arithmetic(every):
    exact = Fraction(every).limit_denominator(10_000) * PER_EPOCH if every > 1e-9 else Fraction(1)
    want = {373} | {-(-(i * exact) // 1) for i in range(1, int(373 / exact) + 1)}
    assert Experiment.steps_at(Run(), every) == want


def test_steps_at_0_is_only_the_last_step():
    assert Experiment.steps_at(Run(), 0.0) == {373}


def test_schedule_by_epoch_is_constant_within_an_epoch():
    """With batches of 320 of 1,328 images, epochs begin at steps 0, 5, 9, 13 and 17."""
    config = defaults().optim
    config.update({"schedule": "polynomial", "schedule_by": "epoch"})
    schedule = schedules.make_schedule(
        config, batch_size=256, steps_per_epoch=PER_EPOCH, total_steps=17
    )
    rates = [float(schedule(jnp.int32(t))) for t in range(17)]
    want = [0.1] * 5 + [0.075] * 4 + [0.05] * 4 + [0.025] * 4
    assert rates == pytest.approx(want)


@given(
    st.integers(60, 1000), st.integers(20, 300), st.integers(20, 300), st.integers(1, 40),
    st.sampled_from(["step", "epoch"]),
)  # fmt: skip
@settings(max_examples=8)
@example(1000, 100, 256, 3, "step")
@example(1000, 100, 256, 3, "epoch")
def test_milestone_keeps_its_epoch_after_a_batch_size_change(length, old, new, switch, by):
    """Step t starts at record switch * old + (t - switch) * new."""
    config = defaults().optim
    config.update({"milestones": (2.0, 3.5, 9.0), "decay_factor": 0.5, "schedule_by": by})
    sampler = Sampler(length, seed=0, batch_size=new)
    end = math.ceil(10 * sampler.steps_per_epoch)
    schedule = schedules.make_schedule(
        config, batch_size=256, steps_per_epoch=sampler.steps_per_epoch, total_steps=end,
        shift=Fraction(switch * old, new) - switch,
    )  # fmt: skip
    last = switch + (10 * length - switch * old) // new
    rates = jax.vmap(schedule)(jnp.arange(switch, switch + 500)).tolist()
    for t in range(switch, last):
        epoch = Fraction(switch * old + (t - switch) * new, length)
        epoch = Fraction(epoch // 1) if by == "epoch" else epoch
        want = 0.1 * 0.5 ** sum(m <= epoch for m in config.milestones)
        assert rates[t - switch] == pytest.approx(want), t


def test_long_run_has_few_image_sizes():
    config = defaults().augment
    config.update({"start_size": 32, "image_size": 128, "size_ramp": (0.0, 2.0)})
    resolution = Resolution.from_config(config, PER_EPOCH)
    assert {resolution.at(step) for step in (*range(100), 10**9)} == {32, 96, 128}
