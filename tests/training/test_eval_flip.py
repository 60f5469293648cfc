"""Test-time flip: the mean of the logits of image and mirror image."""

import jax
import numpy as np
import optax
import pytest
from conftest import tiny_config

from imagenet_jax.training.evaluate import eval_step, predict
from imagenet_jax.training.sharding import make_mesh
from imagenet_jax.training.state import create_state, model_graph


@pytest.fixture
def setting():
    config = tiny_config("unused", "small_cnn")
    config.eval.flip = True
    mesh = make_mesh(1, jax.devices()[:1])
    state = create_state(config.model, optax.identity(), False, mesh, 0)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    return config, state.weights("raw"), images


def _log_probabilities(config, weights, images):
    return np.log(predict(weights, images, graph=model_graph(config.model), config=config))


def test_flip_averages_logits(setting):
    """Softmax of the mean of logits: probabilities are averaged geometrically."""
    config, weights, images = setting
    both = _log_probabilities(config, weights, images)
    config.eval.flip = False
    mean = (
        _log_probabilities(config, weights, images)
        + _log_probabilities(config, weights, images[:, :, ::-1])
    ) / 2
    want = mean - np.log(np.exp(mean).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(both, want, rtol=1e-4, atol=1e-5)
    assert np.abs(both - _log_probabilities(config, weights, images)).max() > 1e-3


def test_flipped_images_evaluate_alike(setting):
    config, weights, images = setting

    def sums(images):
        batch = {
            "image": images,
            "label": np.arange(6, dtype=np.int32),
            "mask": np.ones(6, np.float32),
        }
        return eval_step(weights, batch, graph=model_graph(config.model), config=config)

    np.testing.assert_allclose(sums(images)["loss"], sums(images[:, :, ::-1])["loss"], rtol=1e-5)
