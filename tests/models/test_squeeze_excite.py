"""Squeeze-and-excitation against the formula of its paper, in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from imagenet_jax.models.layers import SqueezeExcite


@pytest.mark.parametrize("gate", [nnx.sigmoid, nnx.hard_sigmoid])
def test_each_channel_is_scaled_by_its_gate(gate):
    layer = SqueezeExcite(6, 2, gate=gate, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for conv in (layer.fc1, layer.fc2):
        conv.bias[...] = jnp.asarray(rng.normal(size=conv.bias.shape), jnp.float32)
    x = rng.normal(size=(3, 5, 4, 6)).astype(np.float32)
    kernels = [np.asarray(conv.kernel[0, 0]) for conv in (layer.fc1, layer.fc2)]
    biases = [np.asarray(conv.bias[...]) for conv in (layer.fc1, layer.fc2)]
    hidden = np.maximum(x.mean((1, 2)) @ kernels[0] + biases[0], 0)
    logits = hidden @ kernels[1] + biases[1]
    want = {
        nnx.sigmoid: 1 / (1 + np.exp(-logits)),
        nnx.hard_sigmoid: np.clip(logits / 6 + 0.5, 0, 1),
    }
    factor = want[gate]
    np.testing.assert_allclose(layer(x), x * factor[:, None, None], atol=1e-6)
