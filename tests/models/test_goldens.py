"""Logits, loss and gradients against what torch computed: tests/goldens/make.py, without torch."""

import importlib.util
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from imagenet_jax import models
from imagenet_jax.config.fields import defaults
from imagenet_jax.runtime import xla
from imagenet_jax.training.losses import cross_entropy
from imagenet_jax.weights import state_dicts

GOLDENS = Path(__file__).parents[1] / "goldens"
_spec = importlib.util.spec_from_file_location("make_goldens", GOLDENS / "make.py")
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)


@pytest.mark.parametrize(
    "name",
    # ResNet-50 takes half a minute, and `make parity` compares it too.
    [pytest.param(n, marks=pytest.mark.full) if n == "resnet50" else n for n in make.MODELS],
)
def test_torchs_results(name):
    side, width = make.MODELS[name]
    golden = np.load(GOLDENS / f"{name}.npz")
    config = defaults(name).model
    config.num_classes, config.width = make.CLASSES, width
    if name.startswith("vgg"):
        config.dropout = 0.0
    model = nnx.eval_shape(lambda: models.build(config, rngs=nnx.Rngs(0)))
    graph, *state = nnx.split(model, nnx.Param, nnx.BatchStat)
    zeros = [
        jax.tree.map(lambda p: np.zeros(p.shape, np.float32), nnx.to_pure_dict(s)) for s in state
    ]
    shapes = state_dicts.to_torch(*zeros, config)
    weights = {k: make.weight(k, v.shape) for k, v in shapes.items() if v.ndim}
    params, stats = state_dicts.from_torch(weights, config)

    @partial(jax.jit, compiler_options=xla.options(optimize=False))
    def run(params, stats, images):
        def loss(params):
            logits = nnx.merge(graph, params, stats)(images, train=True)
            return cross_entropy(logits, jnp.asarray(make.LABELS)).mean()

        logits = nnx.merge(graph, params, stats)(images, train=False)
        return logits, *jax.value_and_grad(loss)(params)

    logits, loss, grads = run(params, stats, jnp.asarray(make.images(side), jnp.float32))
    scale = np.abs(golden["logits"]).max()
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-4 * scale)
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-4)
    found = state_dicts.to_torch(grads, {}, config)
    norms = {key: np.linalg.norm(value) for key, value in found.items()}
    assert {f"grad/{key}" for key in norms} == set(golden.files) - {"logits", "loss"}
    # Batch norm over the 16 values that the last stage has here magnifies float32's roundings;
    # tests/parity compares in float64. A bias before batch norm has nothing but such roundings.
    whole = np.linalg.norm(list(norms.values()))
    for key, norm in norms.items():
        np.testing.assert_allclose(
            norm, golden[f"grad/{key}"], rtol=1e-2, atol=1e-4 * whole, err_msg=key
        )
