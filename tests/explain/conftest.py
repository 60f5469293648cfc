"""A small VGG without batch norm: its convolutions have biases that a test can move."""

import jax
import numpy as np
import pytest
from conftest import tiny_model
from flax import nnx

from imagenet_jax import models


@pytest.fixture(scope="session")
def small_vgg():
    """VGG-11, 4 channels at first, with logits of about unit size."""
    config = tiny_model("vgg11")
    graph, state = nnx.split(nnx.eval_shape(lambda: models.build(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(3)

    def draw(x):
        fan_in = np.prod(x.shape[:-1]) if len(x.shape) > 1 else 25
        return jax.numpy.asarray(rng.normal(0, (2 / fan_in) ** 0.5, x.shape), x.dtype)

    return nnx.merge(graph, jax.tree.map(draw, state))
