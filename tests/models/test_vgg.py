"""VGG: shapes at any input size, adaptive pooling, dropout, initial weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_jax import models
from imagenet_jax.errors import UserError
from imagenet_jax.models import layers, vgg


@pytest.mark.parametrize("name", vgg.VARIANTS)
@pytest.mark.parametrize("size", [(224, 224), (225, 225), (97, 131), (100, 100), (64, 32)])
def test_stage_shapes(name, size):
    def stages(images):
        model = models.build(tiny_model(name, width=1.0), rngs=nnx.Rngs(0))
        return dict(model.activations(images, train=False, rngs=None))

    out = jax.eval_shape(stages, jax.ShapeDtypeStruct((2, *size, 3), jnp.float32))
    want = {
        f"stage{i + 1}": (2, *(s // 2 ** (i + 1) for s in size), channels)
        for i, channels in enumerate((64, 128, 256, 512, 512))
    }
    assert {name: x.shape for name, x in out.items()} == {**want, "logits": (2, 7)}


@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn"])
@pytest.mark.parametrize("size", [32, 64, 100])
def test_small_images_run(name, size, filled):
    model = filled(tiny_model(name))
    logits = model(jnp.ones((2, size, size, 3)), train=False)
    assert logits.shape == (2, 7)
    assert np.isfinite(np.asarray(logits)).all()


@pytest.mark.parametrize("size", [(31, 64), (64, 16)])
def test_images_that_a_stage_would_empty_are_refused(size, filled):
    model = filled(tiny_model("vgg11"))
    with pytest.raises(UserError, match=f"{size[0]}x{size[1]} pixels.*at least 32x32"):
        model(jnp.zeros((1, *size, 3)), train=False)


@settings(max_examples=30)
@given(height=st.integers(1, 30), width=st.integers(1, 30), side=st.integers(1, 9))
def test_adaptive_pool_against_the_rule_written_as_loops(height, width, side):
    x = np.random.default_rng(height * 31 + width).normal(size=(2, height, width, 3))
    want = np.empty((2, side, side, 3))
    for i in range(side):
        for j in range(side):
            top, bottom = np.floor(i * height / side), np.ceil((i + 1) * height / side)
            left, right = np.floor(j * width / side), np.ceil((j + 1) * width / side)
            window = x[:, int(top) : int(bottom), int(left) : int(right)]
            want[:, i, j] = window.mean((1, 2))
    got = layers.adaptive_average_pool(jnp.asarray(x, jnp.float32), side)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_adaptive_pool_of_bfloat16_sums_in_float32():
    x = jnp.full((1, 14, 9, 1), 3.0, jnp.bfloat16)
    pooled = layers.adaptive_average_pool(x, 7)
    assert pooled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(pooled, np.float32), 3.0)


def test_dropout_acts_in_training_alone_and_draws_from_the_call(filled):
    model = filled(tiny_model("vgg11"))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    still = model(images, train=False)
    np.testing.assert_array_equal(still, model(images, train=False, rngs=nnx.Rngs(1)))
    first = model(images, train=True, rngs=nnx.Rngs(dropout=1))
    np.testing.assert_array_equal(first, model(images, train=True, rngs=nnx.Rngs(dropout=1)))
    assert not np.array_equal(first, model(images, train=True, rngs=nnx.Rngs(dropout=2)))
    assert not np.array_equal(first, still)
    with pytest.raises(ValueError, match="rngs"):
        model(images, train=True)


def test_no_dropout_needs_no_rngs_and_changes_nothing(filled):
    model = filled(tiny_model("vgg11", dropout=0.0))
    images = jnp.ones((2, 32, 32, 3))
    np.testing.assert_array_equal(model(images, train=True), model(images, train=False))


def test_dropout_falls_on_both_hidden_layers(filled):
    """Rate p on hidden units scales survivors by 1 / (1 - p): a fraction p of them are 0."""
    model = filled(tiny_model("vgg11", width=0.25, dropout=0.3, num_classes=1000))
    for linear in model.classifier[:-1]:
        linear.kernel[...] = jnp.zeros_like(linear.kernel[...])
        linear.bias[...] = jnp.ones_like(linear.bias[...])
    last = model.classifier[-1]  # logit k reads hidden unit k alone
    last.kernel[...] = jnp.eye(*last.kernel.shape)
    images = jnp.ones((2, 32, 32, 3))
    hidden = np.asarray(model(images, train=True, rngs=nnx.Rngs(0)) - last.bias[...])
    assert set(np.round(np.unique(hidden), 5)) == {0.0, np.float32(1.42857)}
    assert (hidden == 0).mean() == pytest.approx(0.3, abs=0.04)
    # The first hidden layer: with identity weights into the second, zeros come from both.
    middle = model.classifier[1]
    middle.kernel[...] = jnp.eye(*middle.kernel.shape)
    middle.bias[...] = jnp.zeros_like(middle.bias[...])
    hidden = np.asarray(model(images, train=True, rngs=nnx.Rngs(0)) - last.bias[...])
    assert (hidden == 0).mean() == pytest.approx(1 - 0.7**2, abs=0.04)


def test_initial_weights_are_torchvisions():
    config = tiny_model("vgg11_bn", width=0.25)
    model = nnx.jit(lambda: models.build(config, rngs=nnx.Rngs(0)))()
    assert isinstance(model, vgg.VGG)
    for i, j in ((2, 0), (4, 1)):  # 32 -> 64 channels, where fan-in and -out differ; 128 -> 128
        conv = model.features[i][j].conv
        kernel = np.asarray(conv.kernel[...])
        assert kernel.std() == pytest.approx((2 / (kernel.shape[3] * 9)) ** 0.5, rel=0.01)
        assert not np.asarray(conv.bias[...]).any()
    for linear in model.classifier:
        assert np.asarray(linear.kernel[...]).std() == pytest.approx(0.01, rel=0.02)
        assert linear.bias is not None and not np.asarray(linear.bias[...]).any()
