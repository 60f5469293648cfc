"""Occlusion against a loop over squares, in NumPy around the model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_jax.errors import UserError
from imagenet_jax.explain import occlusion

LABELS = np.array([1, 4])
SIZE, STRIDE = 13, 8  # of 32 pixels: squares begin at 0, 8, 16 and, at the edge, 19


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def loop(small_vgg, images):
    """(probability of the whole image f[B], with a hidden square f[B, 4, 4], loss f[B, 32, 32])."""
    starts = (0, 8, 16, 19)
    variants = [images]
    for top in starts:
        for left in starts:
            hidden = images.copy()
            hidden[:, top : top + SIZE, left : left + SIZE] = 0
            variants.append(hidden)
    logits = np.asarray(small_vgg(np.concatenate(variants), train=False), np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    of_class = shares.reshape(17, 2, -1)[:, np.arange(2), LABELS]
    whole, hidden = of_class[0], of_class[1:].T.reshape(2, 4, 4)
    loss = np.zeros((2, 32, 32))
    for b in range(2):
        for row in range(32):
            for column in range(32):
                loss[b, row, column] = np.mean(
                    [
                        whole[b] - hidden[b, i, j]
                        for i, top in enumerate(starts)
                        for j, left in enumerate(starts)
                        if top <= row < top + SIZE and left <= column < left + SIZE
                    ]
                )
    return whole, hidden, loss


def test_probabilities_and_losses_are_those_of_a_loop(small_vgg, images, loop):
    _, hidden, loss = loop
    assert np.ptp(hidden) > 0.05  # hiding matters
    options = {"size": SIZE, "stride": STRIDE}
    found = occlusion.probabilities(small_vgg, images, LABELS, **options)
    np.testing.assert_allclose(found, hidden, atol=1e-5)
    found = occlusion.occlusion(small_vgg, images, LABELS, **options)
    np.testing.assert_allclose(found, loss, atol=1e-5)


@given(side=st.integers(2, 300))
def test_default_squares_cover_every_pixel(side):
    size = occlusion.default_size(side)
    starts = occlusion.corners(side, size, occlusion.default_stride(size))
    covered = {pixel for start in starts for pixel in range(start, start + size)}
    assert covered == set(range(side))


@pytest.mark.parametrize(("size", "stride"), [(33, 1), (0, 1), (4, 0)])
def test_squares_that_do_not_fit_are_refused(size, stride):
    with pytest.raises(UserError, match="does not fit images of 32 pixels"):
        occlusion.corners(32, size, stride)
