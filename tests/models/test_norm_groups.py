"""Batch norm in groups of images, group norm and standardised kernels, against float64 NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_jax.errors import UserError
from imagenet_jax.models.layers import StandardizedConv, standardize
from imagenet_jax.models.norms import BatchNorm, GroupNorm


@settings(max_examples=8)
@given(groups=st.integers(1, 4), size=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_each_group_of_images_is_normalised_alone(groups, size, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(1.0, 2.0, (groups * size, 2, 3, 4)).astype(np.float32)
    x += 3 * np.arange(groups).repeat(size)[:, None, None, None].astype(np.float32)
    norm = BatchNorm(4, images_per_group=size)
    scale, bias = rng.uniform(0.5, 2, 4), rng.normal(size=4)
    norm.scale[...], norm.bias[...] = jnp.float32(scale), jnp.float32(bias)
    y = np.asarray(norm(jnp.asarray(x), train=True))
    parts = [x[i : i + size].astype(np.float64) for i in range(0, len(x), size)]
    for i, part in enumerate(parts):
        mean, var = part.mean((0, 1, 2)), part.var((0, 1, 2))
        want = (part - mean) / np.sqrt(var + 1e-5) * scale + bias
        np.testing.assert_allclose(y[i * size : (i + 1) * size], want, rtol=1e-2, atol=1e-2)
    means = np.mean([p.mean((0, 1, 2)) for p in parts], 0)
    variances = np.mean([p.reshape(-1, 4).var(0, ddof=1) for p in parts], 0)
    np.testing.assert_allclose(norm.mean[...], 0.1 * means, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * variances, rtol=1e-4)


def test_groups_must_divide_the_batch_in_training_alone():
    norm, x = BatchNorm(3, images_per_group=4), jnp.ones((6, 2, 2, 3))
    with pytest.raises(UserError, match=r"6 images .* config\.model\.bn_group = 4"):
        norm(x, train=True)
    assert norm(x, train=False).shape == x.shape


def test_group_norm_is_of_32_runs_of_channels_of_each_image():
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 3.0, (3, 4, 5, 96)).astype(np.float32)
    scale, bias = rng.uniform(0.5, 2, 96), rng.normal(size=96)
    norm = GroupNorm(96)
    norm.scale[...], norm.bias[...] = jnp.float32(scale), jnp.float32(bias)
    want = np.empty(x.shape)
    for image in range(3):
        for group in range(32):
            values = x[image, :, :, 3 * group : 3 * group + 3].astype(np.float64)
            normal = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
            want[image, :, :, 3 * group : 3 * group + 3] = normal
    want = want * scale + bias
    np.testing.assert_allclose(norm(jnp.asarray(x)), want, rtol=1e-4, atol=1e-4)
    half = norm(jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, np.float64), want, atol=0.1)


def test_group_norm_refuses_channels_that_do_not_divide():
    with pytest.raises(UserError, match="multiple of 32 channels, not 48"):
        GroupNorm(48)


def test_kernels_have_mean_0_and_variance_1_over_the_inputs_of_each_output():
    kernel = np.random.default_rng(0).normal(5.0, 0.01, (3, 3, 7, 5)).astype(np.float32)
    got = np.asarray(standardize(jnp.asarray(kernel)), np.float64)
    exact = kernel.astype(np.float64)
    mean, var = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    np.testing.assert_allclose(got, (exact - mean) / np.sqrt(var + 1e-10), atol=2e-3)
    np.testing.assert_allclose(got.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(got.std((0, 1, 2)), 1, atol=1e-3)


def test_a_standardised_convolution_ignores_shift_and_scale_of_its_kernel():
    conv = StandardizedConv(4, 6, (3, 3), strides=2, padding=1, use_bias=False, rngs=nnx.Rngs(0))
    plain = nnx.Conv(4, 6, (3, 3), strides=2, padding=1, use_bias=False, rngs=nnx.Rngs(1))
    plain.kernel[...] = standardize(conv.kernel[...])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 9, 4)), jnp.float32)
    before = conv(x)
    np.testing.assert_allclose(before, plain(x), rtol=1e-5, atol=1e-5)
    conv.kernel[...] = 7 * conv.kernel[...] + 3
    np.testing.assert_allclose(conv(x), before, rtol=1e-3, atol=1e-3)
    assert conv(x.astype(jnp.bfloat16)).dtype == jnp.float32  # the operands' common type
