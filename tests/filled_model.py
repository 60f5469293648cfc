"""Models with values from NumPy: drawing them op by op compiles for seconds."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from imagenet_jax import models


@pytest.fixture(scope="session")
def filled():
    """filled(config.model) -> that model with kernels of unit gain, norms near the identity."""

    def fill(config):
        rng = np.random.default_rng(0)

        def values(path, leaf):
            name = jax.tree_util.keystr(path)
            if "kernel" in name:
                noise = rng.normal(size=leaf.shape) * math.prod(leaf.shape[:-1]) ** -0.5
            else:
                noise = rng.uniform(-0.1, 0.1, leaf.shape) + ("scale" in name or "var" in name)
            return jnp.asarray(noise, leaf.dtype)

        graph, *state = nnx.split(
            nnx.eval_shape(lambda: models.build(config, rngs=nnx.Rngs(0))),
            nnx.Param,
            nnx.BatchStat,
        )
        return nnx.merge(graph, *jax.tree_util.tree_map_with_path(values, state))

    return fill
