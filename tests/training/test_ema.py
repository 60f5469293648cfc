"""The step size of the EMA against recursions written out step by step."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_jax import config as config_io
from imagenet_jax.config.fields import defaults
from imagenet_jax.errors import UserError
from imagenet_jax.training.state import make_ema_step_size


def _step_sizes(steps, *, batch_size=8, epochs=10.0, warmup_steps=0, **changes):
    config = defaults()
    config.batch_size, config.epochs = batch_size, epochs
    config.ema.update(changes)
    step_size = make_ema_step_size(config, warmup_steps)
    return np.array([float(step_size(jnp.int32(t))) for t in range(steps)])


def test_constant_is_one_minus_the_decay():
    assert (_step_sizes(5, decay=0.9999) == np.float64(1 - 0.9999)).all()


@pytest.mark.parametrize("every", [1, 3])
def test_ema_does_not_change_between_updates(every):
    sizes = _step_sizes(10, decay=0.75, every_steps=every)
    np.testing.assert_allclose(sizes, [0.25 if t % every == 0 else 0.0 for t in range(10)])


@settings(max_examples=15)
@given(
    decay=st.sampled_from([0.9, 0.9998]),
    every=st.sampled_from([1, 4]),
    warmup=st.sampled_from([0, 6, 8]),
    batch=st.sampled_from([8, 1024]),
    epochs=st.sampled_from([2.0, 600.0]),
)
def test_torchvision_copies_until_the_end_of_the_warm_up(decay, every, warmup, batch, epochs):
    """As in its training loop: a counter of averages that is 0 during the warm-up."""
    want, averaged = [], 0
    adjust = batch * every / epochs
    alpha = min(1.0, (1.0 - decay) * adjust)
    for t in range(20):
        if t % every:
            want.append(0.0)
            continue
        want.append(1.0 if averaged == 0 else alpha)
        averaged += 1
        if t < warmup:
            averaged = 0
    got = _step_sizes(
        20,
        form="torchvision",
        decay=decay,
        every_steps=every,
        warmup_steps=warmup,
        batch_size=batch,
        epochs=epochs,
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(("gamma", "power"), [(1.0, 2 / 3), (5.0, 0.75)])
def test_timm_warms_up_its_decay(gamma, power):
    want = [1.0] + [1 - min(0.9, 1 - (1 + t / gamma) ** -power) for t in range(1, 200)]
    got = _step_sizes(200, form="timm", decay=0.9, gamma=gamma, power=power)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert got[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "timm"}, r"ema\.form = 'timm' does nothing with config\.ema\.decay = 0"),
        ({"every_steps": 32}, r"ema\.every_steps = 32 does nothing with config\.ema\.decay = 0"),
        ({"decay": 0.9, "power": 0.5}, r"ema\.power = 0.5 does nothing with config\.ema\.form"),
        ({"decay": 0.9, "every_steps": 0}, r"must be above 0"),
    ],
)
def test_settings_without_effect_are_refused(changes, message):
    config = defaults()
    config.ema.update(changes)
    with pytest.raises(UserError, match=message):
        config_io.check(config)
