"""Folded batch norm against the unfolded model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import image_side
from flax import nnx

from imagenet_jax import models
from imagenet_jax.config.fields import defaults
from imagenet_jax.explain.methods import add_tap, conv_layers
from imagenet_jax.models.folding import fold_batch_norm
from imagenet_jax.models.norms import BatchNorm

FIRST = [family.variants[0] for family in models.families()]


def small(name, **fields):
    config = defaults(name).model
    config.width, config.num_classes = 0.5 if name.startswith("bit") else 1 / 16, 10
    config.update(fields)
    return config


def norms(model):
    return [module for _, module in nnx.iter_modules(model) if isinstance(module, BatchNorm)]


@pytest.mark.parametrize(
    "name",
    [
        name if name in FIRST else pytest.param(name, marks=pytest.mark.full)
        for name in models.names()
        if not name.startswith("densenet")  # its norms come before convolutions, and stay
    ],
)
def test_no_batch_norm_is_left(name):
    config = small(name)
    model = nnx.eval_shape(lambda: fold_batch_norm(models.build(config, rngs=nnx.Rngs(0))))
    assert not norms(model)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet18", {}),
        ("vgg11_bn", {}),
        *(
            pytest.param(name, fields, marks=pytest.mark.full)
            for name, fields in [
                *((name, {}) for name in FIRST),
                ("resnet18", {"blur_pool": "ffcv"}),
            ]
            if name != "resnet18" or fields
        ),
    ],
)
def test_logits_are_those_of_the_unfolded_model_in_float64(name, fields, filled):
    graph, state = nnx.split(filled(small(name, **fields)))
    with jax.enable_x64(True):
        state = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), state)
        side = image_side(name)
        images = np.random.default_rng(0).normal(size=(2, side, side, 3))

        @jax.jit
        def both(state, images):
            model = nnx.merge(graph, state)
            return model(images, train=False), fold_batch_norm(model)(images, train=False)

        plain, folded = both(state, images)
    assert folded.dtype == jnp.float64
    assert np.abs(plain).max() > 0.01
    np.testing.assert_allclose(folded, plain, rtol=1e-9, atol=1e-12)


def test_the_model_itself_and_tapped_convolutions_stay(filled):
    model = filled(small("resnet18"))
    count, kernel = len(norms(model)), np.asarray(model.conv1.kernel[...])
    tapped = add_tap(model, conv_layers(model)[0], lambda x: x)
    folded = nnx.eval_shape(lambda: fold_batch_norm(tapped))
    assert len(norms(folded)) == 1  # that of the tapped convolution
    assert len(norms(model)) == count
    fold_batch_norm(model)
    np.testing.assert_array_equal(model.conv1.kernel[...], kernel)
    assert model.conv1.bias is None


@pytest.mark.parametrize(("shift", "bound"), [(0.1, 1.1), (1.0, 1.1), (4.0, 1.2)])
def test_bfloat16_with_one_rounding_is_about_as_close_to_float64_as_batch_norm(shift, bound):
    """As cuDNN computes: the sum of product and rounded bias is rounded once.

    The rounding of the bias shows if means are large compared to standard deviations.
    """
    rng = np.random.default_rng(0)

    def half(x):
        return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)

    errors = []
    for _ in range(20):
        x = half(np.maximum(rng.normal(shift, 1, (256, 64)), 0))
        kernel = rng.normal(size=(64, 64)) / 8
        scale, bias = rng.uniform(0.3, 1.2, 64), rng.normal(size=64) * shift
        y = x @ kernel
        mean, factor = y.mean(0), scale / np.sqrt(y.var(0) + 1e-5)
        want = (y - mean) * factor + bias
        plain = half((half(x @ half(kernel)) - mean) * factor + bias)
        folded = half(x @ half(kernel * factor) + half(bias - mean * factor))
        errors.append([np.square(found - want).mean() for found in (plain, folded)])
    plain, folded = np.sqrt(np.mean(errors, 0))
    assert folded < bound * plain
