"""Grad-CAM against finite differences of the model itself, and the paper's two equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from imagenet_jax.explain import gradcam, layers

LABELS = np.array([2, 5])
LAYER = "features.0"  # as large as the image: nothing is enlarged


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def slopes(small_vgg, images):
    """f64[B, K]: how each image's logit moves with a channel as a whole: the sum of its gradient.

    The convolution's own bias is moved, in float64; no code of the package takes a derivative.
    """
    with jax.enable_x64(True):
        graph, state = nnx.split(small_vgg)
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), state)

        @jax.jit
        def logits(moved):
            model = nnx.merge(graph, wide)
            conv = model.features[0][0].conv
            conv.bias = nnx.Param(conv.bias[...] + moved)
            return model(jnp.asarray(images, jnp.float64), train=False)

        step, columns = 1e-6, []
        for moved in np.eye(len(small_vgg.features[0][0].conv.bias[...])) * step:
            columns.append((logits(moved) - logits(-moved))[np.arange(2), LABELS] / (2 * step))
        return np.stack(columns, -1)


def test_gradients_are_those_of_finite_differences(small_vgg, images, slopes):
    _, gradients = gradcam.outputs_and_gradients(small_vgg, images, LABELS, LAYER)
    found = np.asarray(gradients, np.float64).sum((1, 2))
    np.testing.assert_allclose(found, slopes, atol=1e-4 * np.abs(slopes).max())


def test_the_map_is_that_of_the_equations(small_vgg, images, slopes):
    outputs = np.asarray(layers.activations(small_vgg, images, LAYER), np.float64)
    maps = gradcam.grad_cam(small_vgg, images, LABELS, LAYER)
    for output, slope, found in zip(outputs, slopes, maps, strict=True):
        weights = slope / (32 * 32)  # equation 1
        expected = np.maximum((output * weights).sum(-1), 0)  # equation 2
        assert expected.max() > 0
        np.testing.assert_allclose(found, expected / expected.max(), atol=1e-3)


def test_a_coarse_layer_is_enlarged_to_the_image(small_vgg, images):
    maps = np.asarray(gradcam.grad_cam(small_vgg, images, LABELS, "features.18"))
    assert maps.shape == (2, 32, 32)
    assert maps.min() >= 0
    # The second image's map is nowhere positive in this layer.
    np.testing.assert_allclose(maps.max((1, 2)), [1, 0], atol=1e-6)


def test_a_class_that_nothing_moves_has_an_empty_map(small_vgg, images):
    deaf = nnx.merge(*nnx.split(small_vgg))
    deaf.classifier[2].kernel = nnx.Param(jnp.zeros_like(small_vgg.classifier[2].kernel[...]))
    assert not np.asarray(gradcam.grad_cam(deaf, images, LABELS, LAYER)).any()
