"""Grad-CAM, guided backpropagation and occlusion against independent NumPy computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from imagenet_jax.errors import UserError
from imagenet_jax.explain import methods

LABELS = np.array([2, 5])
LAYER = "features.0"  # as large as the image, so no map is resized
SQUARE, STRIDE = 13, 8
STARTS = (0, 8, 16, 19)  # of squares on 32 pixels; the last ends at the edge


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def slopes(small_vgg, images):
    """The change of each image's logit per unit added to a whole channel, f64[B, K].

    Finite differences in float64 with respect to the convolution's own bias: the spatial sum of the
    gradient. No code of the package takes a derivative.
    """
    with jax.enable_x64(True):
        graph, state = nnx.split(small_vgg)
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), state)

        @jax.jit
        def logits(added):
            model = nnx.merge(graph, wide)
            conv = model.features[0][0].conv
            conv.bias = nnx.Param(conv.bias[...] + added)
            return model(jnp.asarray(images, jnp.float64), train=False)

        step, columns = 1e-6, []
        for added in np.eye(len(small_vgg.features[0][0].conv.bias[...])) * step:
            columns.append((logits(added) - logits(-added))[np.arange(2), LABELS] / (2 * step))
        return np.stack(columns, -1)


def test_gradients_equal_finite_differences(small_vgg, images, slopes):
    _, gradients = methods.outputs_and_gradients(small_vgg, images, LABELS, LAYER)
    found = np.asarray(gradients, np.float64).sum((1, 2))
    np.testing.assert_allclose(found, slopes, atol=1e-4 * np.abs(slopes).max())


def test_grad_cam_follows_the_equations(small_vgg, images, slopes):
    outputs = np.asarray(methods.activations(small_vgg, images, LAYER), np.float64)
    maps = methods.grad_cam(small_vgg, images, LABELS, LAYER)
    for output, slope, found in zip(outputs, slopes, maps, strict=True):
        weights = slope / (32 * 32)  # equation 1
        expected = np.maximum((output * weights).sum(-1), 0)  # equation 2
        assert expected.max() > 0
        np.testing.assert_allclose(found, expected / expected.max(), atol=1e-3)


def test_grad_cam_of_a_coarse_layer_has_the_size_of_the_image(small_vgg, images):
    maps = np.asarray(methods.grad_cam(small_vgg, images, LABELS, "features.18"))
    assert maps.shape == (2, 32, 32)
    assert maps.min() >= 0
    # The second image's map has no positive value in this layer.
    np.testing.assert_allclose(maps.max((1, 2)), [1, 0], atol=1e-6)


def test_grad_cam_is_zero_if_the_logits_do_not_depend_on_the_image(small_vgg, images):
    constant = nnx.merge(*nnx.split(small_vgg))
    constant.classifier[2].kernel = nnx.Param(jnp.zeros_like(small_vgg.classifier[2].kernel[...]))
    assert not np.asarray(methods.grad_cam(constant, images, LABELS, LAYER)).any()


RNG = np.random.default_rng(0)
FIRST, SECOND, LAST = (RNG.normal(size=shape) for shape in ((12, 9), (9, 8), (8, 5)))


class TwoReLUs(nnx.Module):
    """Three linear layers on a 2x2 image; with `compiled`, one ReLU is in a compiled function."""

    def __init__(self, compiled):
        self.compiled = compiled

    def __call__(self, images, *, train):
        x = nnx.relu(images.reshape(len(images), -1) @ jnp.asarray(FIRST, images.dtype))
        act = nnx.jit(lambda y: nnx.relu(y)) if self.compiled else nnx.relu
        return act(x @ jnp.asarray(SECOND, x.dtype)) @ jnp.asarray(LAST, x.dtype)


@pytest.mark.parametrize("compiled", [False, True])
def test_guided_gradients_pass_each_relu_where_input_and_gradient_are_positive(compiled):
    images, labels = RNG.normal(size=(6, 2, 2, 3)).astype(np.float32), np.arange(6) % 5
    x = images.reshape(len(images), -1).astype(np.float64)
    first = x @ FIRST
    second = np.maximum(first, 0) @ SECOND
    gradient = LAST.T[labels]
    gradient = gradient * (gradient > 0) * (second > 0) @ SECOND.T  # section 3.4
    gradient = gradient * (gradient > 0) * (first > 0) @ FIRST.T
    found = methods.guided_backpropagation(TwoReLUs(compiled), images, labels)
    np.testing.assert_allclose(found, gradient.reshape(images.shape), rtol=1e-4, atol=1e-4)
    assert np.abs(found).max() > 1


def test_occlusion_equals_a_loop_over_squares(small_vgg):
    images = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    labels = np.array([1, 4])
    variants = [images]
    for top in STARTS:
        for left in STARTS:
            hidden = images.copy()
            hidden[:, top : top + SQUARE, left : left + SQUARE] = 0
            variants.append(hidden)
    logits = np.asarray(small_vgg(np.concatenate(variants), train=False), np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    of_class = probabilities.reshape(17, 2, -1)[:, np.arange(2), labels]
    whole, hidden = of_class[0], of_class[1:].T.reshape(2, 4, 4)
    assert np.ptp(hidden) > 0.05  # hiding changes the prediction
    expected = np.zeros((2, 32, 32))
    for b in range(2):
        for row in range(32):
            for column in range(32):
                expected[b, row, column] = np.mean(
                    [
                        whole[b] - hidden[b, i, j]
                        for i, top in enumerate(STARTS)
                        for j, left in enumerate(STARTS)
                        if top <= row < top + SQUARE and left <= column < left + SQUARE
                    ]
                )
    options = {"square": SQUARE, "stride": STRIDE}
    found = methods.occluded_probabilities(small_vgg, images, labels, **options)
    np.testing.assert_allclose(found, hidden, atol=1e-5)
    found = methods.occlusion(small_vgg, images, labels, **options)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@given(side=st.integers(2, 300))
def test_default_squares_cover_every_pixel(side):
    square = methods.default_square(side)
    starts = methods.square_starts(side, square, methods.default_stride(square))
    covered = {pixel for start in starts for pixel in range(start, start + square)}
    assert covered == set(range(side))


@pytest.mark.parametrize(("square", "stride"), [(33, 1), (0, 1), (4, 0)])
def test_squares_that_do_not_fit_are_refused(square, stride):
    with pytest.raises(UserError, match="does not fit images of 32 pixels"):
        methods.square_starts(32, square, stride)
