"""Batch norm against its formula in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_jax.errors import UserError
from imagenet_jax.models.norms import BatchNorm
from imagenet_jax.models.windows import max_pool


def made(channels: int, rng: np.random.Generator) -> BatchNorm:
    norm = BatchNorm(channels)
    norm.scale[...] = jnp.asarray(rng.uniform(0.5, 2, channels), jnp.float32)
    norm.bias[...] = jnp.asarray(rng.normal(size=channels), jnp.float32)
    norm.mean[...] = jnp.asarray(rng.normal(size=channels), jnp.float32)
    norm.var[...] = jnp.asarray(rng.uniform(0.5, 2, channels), jnp.float32)
    return norm


def values(norm: BatchNorm) -> list[np.ndarray]:
    return [np.asarray(v[...], np.float64) for v in (norm.scale, norm.bias, norm.mean, norm.var)]


@settings(max_examples=20)
@given(
    batch=st.integers(1, 4),
    height=st.integers(1, 4),
    width=st.integers(2, 4),
    seed=st.integers(0, 2**31),
)
def test_training_normalises_with_biased_and_keeps_unbiased_variance(batch, height, width, seed):
    rng = np.random.default_rng(seed)
    norm = made(3, rng)
    scale, bias, old_mean, old_var = values(norm)
    x = rng.normal(1.0, 2.0, (batch, height, width, 3)).astype(np.float32)
    y = norm(jnp.asarray(x), train=True)
    flat = x.reshape(-1, 3).astype(np.float64)
    mean, biased, unbiased = flat.mean(0), flat.var(0), flat.var(0, ddof=1)
    # One-pass moments cancel where the mean is far above the deviation: hence not 1e-6.
    np.testing.assert_allclose(
        y, (x - mean) / np.sqrt(biased + 1e-5) * scale + bias, rtol=1e-2, atol=1e-2
    )
    np.testing.assert_allclose(norm.mean[...], 0.9 * old_mean + 0.1 * mean, atol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 * old_var + 0.1 * unbiased, rtol=1e-4)


def test_evaluation_uses_the_kept_statistics_and_moves_nothing():
    rng = np.random.default_rng(0)
    norm = made(5, rng)
    before = values(norm)
    scale, bias, mean, var = before
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    y = norm(jnp.asarray(x), train=False)
    np.testing.assert_allclose(
        y, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, rtol=1e-5, atol=1e-5
    )
    for old, new in zip(before, values(norm), strict=True):
        np.testing.assert_array_equal(old, new)


def test_bfloat16_is_normalised_with_float32_moments():
    x = jnp.asarray(np.random.default_rng(0).normal(3.0, 1.0, (64, 16, 16, 2)), jnp.bfloat16)
    norm = BatchNorm(2)
    y = norm(x, train=True)
    assert y.dtype == jnp.bfloat16
    # The mean of 16,384 bfloat16 values: summed in bfloat16 it would stall at a few hundred.
    exact = np.asarray(x, np.float64).reshape(-1, 2)
    np.testing.assert_allclose(norm.mean[...], 0.1 * exact.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * exact.var(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(y, np.float64).reshape(-1, 2).mean(0), 0, atol=1e-2)


def test_a_constant_channel_gives_the_bias():
    norm = made(2, np.random.default_rng(1))
    scale, bias = values(norm)[:2]
    magnified = np.abs(scale) / np.sqrt(1e-5)
    # x * a + (bias - mean * a): each product is rounded once.
    products = 2 * np.spacing(np.float32(1024 * magnified))
    y = np.asarray(norm(jnp.full((4, 4, 4, 2), 1024.0), train=True))  # a mean without rounding
    assert (np.abs(y - bias) <= products).all()
    y = np.asarray(norm(jnp.full((4, 4, 4, 2), 1000.1), train=True))
    # In the worst order each of 64 additions rounds by half a unit in the last place of the sum.
    mean = np.spacing(np.float32(64 * 1000.1)) / 2
    assert (np.abs(y - bias) <= products + mean * magnified).all()


def test_one_value_per_channel_is_refused():
    with pytest.raises(UserError, match="one value per channel"):
        BatchNorm(3)(jnp.ones((1, 1, 1, 3)), train=True)
    assert BatchNorm(3)(jnp.ones((1, 1, 1, 3)), train=False).shape == (1, 1, 1, 3)


def test_holds_parameters_and_statistics_alone():
    graph, params, stats = nnx.split(BatchNorm(4), nnx.Param, nnx.BatchStat)
    assert set(nnx.to_pure_dict(params)) == {"scale", "bias"}
    assert set(nnx.to_pure_dict(stats)) == {"mean", "var"}


@pytest.mark.parametrize("images_per_group", [0, 2])
@pytest.mark.parametrize("train", [True, False])
def test_pooling_before_the_norm_equals_pooling_after_it(train, images_per_group):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(1.0, 2.0, (4, 6, 7, 4)).astype(np.float32))

    def pool(x):
        return max_pool(x, 3, padding=1)

    def run(early, scale, x):
        norm = made(4, np.random.default_rng(1))
        norm.scale[...], norm.images_per_group = scale, images_per_group
        y = norm(x, train=train, max_pool=pool) if early else pool(norm(x, train=train))
        return nnx.relu(y), (norm.mean[...], norm.var[...])

    scale = jnp.array([1.5, -0.5, 0.0, -2.0])
    (late, statistics), (early, found) = (run(early, scale, x) for early in (False, True))
    np.testing.assert_array_equal(early, late)
    for ours, theirs in zip(found, statistics, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    weights = jnp.asarray(rng.normal(size=late.shape), jnp.float32)
    # Without the channel of scale 0: all of its pixels are equal, and any may have the gradient.
    gradients = [
        jax.grad(lambda s, x, early=early: jnp.sum(weights * run(early, s, x)[0]), (0, 1))(scale, x)
        for early in (False, True)
    ]
    for theirs, ours in zip(*gradients, strict=True):
        varied = np.array([0, 1, 3])
        np.testing.assert_allclose(ours[..., varied], theirs[..., varied], atol=1e-4)
