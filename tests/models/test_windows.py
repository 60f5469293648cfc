"""Convolution and max pooling in the forms for GPUs and CPUs, beside XLA's own."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from imagenet_jax import models
from imagenet_jax.config.fields import defaults
from imagenet_jax.models import windows


def with_gradients(form, *operands):
    """Return the output of `form`, and the gradients of a weighted sum of it, as float64."""

    @jax.jit
    def both(*operands):
        outputs, gradients = jax.vjp(form, *operands)
        weights = np.random.default_rng(1).normal(size=outputs.shape)
        return outputs, *gradients(weights.astype(outputs.dtype))

    return [np.asarray(x, float) for x in both(*operands)]


@pytest.mark.parametrize(
    ("sides", "size", "strides", "pads"),
    [
        ((15, 16), (7, 7), (2, 2), ((3, 3), (3, 3))),  # ResNet's stem
        ((13, 14), (3, 3), (2, 2), ((0, 1), (0, 1))),  # TensorFlow's padding
        ((23, 27), (11, 11), (4, 4), ((2, 2), (2, 2))),  # AlexNet
        ((12, 14), (4, 4), (4, 4), ((0, 0), (0, 0))),  # patches, and pixels that none covers
        ((9, 8), (2, 5), (3, 2), ((1, 0), (3, 2))),
    ],
)
def test_a_convolution_of_blocks_equals_the_strided_one(sides, size, strides, pads):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, *sides, 3)).astype(np.float32)
    kernel = rng.normal(size=(*size, 3, 5)).astype(np.float32)

    def plain(images, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(images, kernel, strides, pads, dimension_numbers=layout)

    def blocks(images, kernel):
        return windows.convolve_blocks(images, kernel, strides, pads)

    expected = with_gradients(plain, images, kernel)
    for ours, theirs in zip(with_gradients(blocks, images, kernel), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("sides", "size", "strides", "pads"),
    [
        ((8, 9), (3, 3), (1, 1), ((1, 1), (1, 1))),
        ((12, 9), (5, 5), (2, 2), ((2, 2), (2, 2))),
        ((7, 8), (3, 3), (2, 2), ((1, 1), (0, 1))),  # TensorFlow's padding
        ((9, 7), (7, 7), (1, 1), ((3, 3), (3, 3))),  # ConvNeXt
        ((10, 11), (2, 4), (3, 2), ((0, 0), (2, 1))),  # pixels that no window covers
    ],
)
def test_a_depthwise_convolution_of_shifted_images_equals_xla_s(sides, size, strides, pads):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, *sides, 5)).astype(np.float32)
    kernel = rng.normal(size=(*size, 1, 5)).astype(np.float32)

    def plain(images, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            images, kernel, strides, pads, dimension_numbers=layout, feature_group_count=5
        )

    def shifted(images, kernel):
        return windows.convolve_depthwise(images, kernel, strides, pads)

    expected = with_gradients(plain, images, kernel)
    for ours, theirs in zip(with_gradients(shifted, images, kernel), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_depthwise_convolution_of_bfloat16_sums_in_float32():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 6, 6, 4)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 1, 4)), jnp.bfloat16)
    pads = ((1, 1), (1, 1))
    out = windows.convolve_depthwise(images, kernel, (1, 1), pads)
    wide = windows.convolve_depthwise(
        images.astype(jnp.float32), kernel.astype(jnp.float32), (1, 1), pads
    )
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, wide.astype(jnp.bfloat16))


@pytest.mark.parametrize("platform", ["cuda", "tpu", "cpu"])
def test_only_programs_for_cpus_shift_images_of_depthwise_convolutions(platform):
    config = defaults("mobilenet_v2").model
    config.width = 0.125
    graph, params, stats = models.outline(config)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def logits(params, stats, images):
        return nnx.merge(graph, params, stats)(images, train=False)

    program = jax.jit(logits).trace(params, stats, images)
    program = program.lower(lowering_platforms=(platform,)).as_text()
    grouped = re.findall(r"feature_group_count = (\d+)", program)
    assert ({"1"} == set(grouped)) == (platform == "cpu")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    ("side", "window", "stride", "before", "after"),
    [(12, 3, 2, 1, 1), (9, 3, 2, 0, 1), (7, 2, 2, 0, 0), (5, 3, 1, 1, 1), (8, 2, 3, 0, 1)],
)
def test_a_tracked_max_pool_equals_xla_s(side, window, stride, before, after, dtype):
    rng = np.random.default_rng(side)
    x = jnp.asarray(rng.integers(-4, 2, (2, side, side + 1, 3)), dtype)  # many pixels are equal
    pads = ((before, after), (after, before))

    def plain(x):
        sizes, strides = (1, window, window, 1), (1, stride, stride, 1)
        around = ((0, 0), *pads, (0, 0))
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, sizes, strides, around)

    def tracked(x):
        return windows.max_pool_tracked(x, window, stride, pads)

    (expected, gradient), (ours, ours_gradient) = (with_gradients(f, x) for f in (plain, tracked))
    np.testing.assert_array_equal(ours, expected)
    # Up to nine gradients are added, in the precision of x by XLA and in float32 by ours.
    np.testing.assert_allclose(ours_gradient, gradient, atol=16 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_tracked_max_pool_keeps_values_that_are_not_finite(value):
    x = jnp.full((1, 4, 4, 1), -2.0, jnp.bfloat16).at[0, 1, 1, 0].set(value)
    pooled, _ = windows._max_pool_forward(x, 2, 2, ((0, 0), (0, 0)))
    expected = [max(-2.0, value), -2.0, -2.0, -2.0] if value == value else [value, -2.0, -2.0, -2.0]
    np.testing.assert_array_equal(np.asarray(pooled, float).ravel(), expected)


@pytest.mark.parametrize(("platform", "scatters"), [("cuda", 0), ("cpu", 1)])
def test_only_programs_for_gpus_have_these_forms(platform, scatters):
    config = defaults("resnet50").model
    config.width, config.dtype = 0.125, "bfloat16"
    graph, params, stats = models.outline(config)

    def loss(params, stats, images):
        return jnp.sum(nnx.merge(graph, params, stats)(images, train=False))

    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.bfloat16)
    step = jax.jit(jax.grad(loss)).trace(params, stats, images)
    program = step.lower(lowering_platforms=(platform,)).as_text()
    assert program.count("select_and_scatter") == scatters
    assert ("tensor<8x4x4x16xbf16>" in program) == (platform == "cuda")
