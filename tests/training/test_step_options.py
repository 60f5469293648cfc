"""Model options with random numbers or groups of images give the same step on 8 devices and 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagenet_jax.training.experiment import make_step_parts
from imagenet_jax.training.sharding import batch_sharding, make_mesh
from imagenet_jax.training.state import abstract_state, create_state
from imagenet_jax.training.step import compile_train_step


def one_step(config, devices: int, rows: int = 32):
    """Return (state, metrics) after one step in float64, so that rounding hides no difference."""
    mesh = make_mesh(1, jax.devices()[:devices])
    parts = make_step_parts(config, steps_per_epoch=10)
    abstract = abstract_state(config.model, parts.tx, True, mesh)
    state = create_state(config.model, parts.tx, True, mesh, config.seed)
    state = jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.float32 else x, state)
    step = compile_train_step(parts, abstract, mesh)
    rng = np.random.default_rng(7)
    side = config.augment.image_size
    batch = {
        "image": rng.integers(0, 256, (rows, side, side, 3), dtype=np.uint8),
        "label": rng.integers(0, 10, rows).astype(np.int32),
    }
    return jax.device_get(step(state, jax.device_put(batch, batch_sharding(mesh))))


def params(config, devices: int) -> np.ndarray:
    with jax.enable_x64(True):
        state, metrics = one_step(config, devices)
    leaves = jax.tree.leaves((state.params, state.batch_stats, metrics["loss"]))
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


@pytest.fixture
def options(tiny):
    tiny.optim.schedule = "constant"  # at 0.05
    tiny.model.drop_path = 0.5
    tiny.model.bn_group = 8  # the images of two devices
    tiny.model.blur_pool = "ffcv"
    return tiny


@pytest.mark.slow  # three compilations
def test_options_give_the_same_step_on_one_and_eight_devices(options):
    one, many = params(options, 1), params(options, 8)
    np.testing.assert_allclose(many, one, rtol=1e-7, atol=1e-9)
    # The options have an effect.
    options.model.drop_path = 0.0
    assert not np.allclose(params(options, 1), one, rtol=1e-3, atol=1e-5)
