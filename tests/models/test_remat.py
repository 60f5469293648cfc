"""Recomputing blocks in the backward pass changes memory, and neither results nor statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import image_side, tiny_model
from flax import nnx

from imagenet_jax import models

full = pytest.mark.full
NAMES = ["vgg11_bn", *(family.variants[0] for family in models.families())]
CASES = [
    # Compiling takes up to a minute each: one family in CI, all in `make test-full`.
    pytest.param(name, remat, marks=() if (name, remat) == ("resnet18", "blocks") else full)
    for name in NAMES
    for remat in ("blocks", "dots")
]


def gradient(name, remat, dtype, **fields):
    """Return the compiled function: params -> (loss, statistics, gradients), and its arguments."""
    config = tiny_model(name, remat=remat, **fields)
    if name.startswith("bit"):
        config.width = 0.5  # the least that 32 groups divide
    rng = np.random.default_rng(0)
    graph, *shapes = models.outline(config)
    params, stats = jax.tree.map(lambda x: rng.normal(0.1, 0.1, x.shape).astype(dtype), shapes)
    side = image_side(name)
    images = rng.normal(size=(4, side, side, 3)).astype(dtype)

    @jax.jit
    def compute(params, stats, images):
        def loss(params):
            model = nnx.merge(graph, params, stats)
            logits, auxiliary = model.training_logits(images, rngs=nnx.Rngs(dropout=7))
            moved = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
            return sum(jnp.mean(jnp.square(x)) for x in (logits, *auxiliary)), moved

        return jax.value_and_grad(loss, has_aux=True)(params)

    return compute, (params, stats, jnp.asarray(images))


@pytest.mark.parametrize(("name", "remat"), CASES)
def test_results_are_those_without(name, remat):
    fields = {"drop_path": 0.5} if name.startswith("resnet") else {}
    with jax.enable_x64(True):
        plain, arguments = gradient(name, "none", np.float64, **fields)
        again, _ = gradient(name, remat, np.float64, **fields)
        wanted = jax.tree.leaves(plain(*arguments))
        # Gradients of biases that a batch norm follows are sums of large numbers to 0.
        atol = max(1e-12, 1e-14 * max(np.abs(x).max() for x in wanted))
        for got, want in zip(jax.tree.leaves(again(*arguments)), wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=atol)


@pytest.mark.parametrize("name", ["resnet18", pytest.param("densenet121", marks=full)])
def test_less_is_kept_for_the_backward_pass(name):
    """Residuals of the loss, which JAX keeps between the passes, shrink from none to blocks."""

    def kept(remat):
        config = tiny_model(name, remat=remat)
        graph, params, stats = models.outline(config)

        def residuals(params, stats, images):
            def loss(params):
                return jnp.sum(nnx.merge(graph, params, stats)(images, train=True))

            return jax.vjp(loss, params)[1]

        shape = jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.float32)
        leaves = jax.tree.leaves(jax.eval_shape(residuals, params, stats, shape))
        return sum(x.size for x in leaves)

    blocks, dots, none = map(kept, ("blocks", "dots", "none"))
    assert blocks < dots < none
    if name == "densenet121":  # each feature once, not in every concatenation that it is part of
        assert blocks < none / 5
