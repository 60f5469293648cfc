"""Random erasing: boxes against a plain simulation of the paper's loop, and what they erase."""

from functools import partial

import jax
import numpy as np
from scipy import stats

from imagenet_jax.data.augment import erasing
from imagenet_jax.runtime import xla

unoptimized = partial(jax.jit, compiler_options=xla.options(optimize=False))
BOXES = unoptimized(erasing.boxes, static_argnames="count")
COUNT = 4000


def _simulated(rng, height, width):
    """The paper's algorithm 1, with ten attempts."""
    for _ in range(10):
        area = rng.uniform(0.02, 0.33) * height * width
        ratio = np.exp(rng.uniform(np.log(0.3), np.log(3.3)))
        h, w = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if h < height and w < width:
            return rng.integers(height - h + 1), rng.integers(width - w + 1), h, w
    return 0, 0, 0, 0


def test_boxes_are_distributed_as_the_papers():
    height, width = 40, 96
    ours = np.asarray(BOXES(jax.random.key(0), COUNT, height, width, 1.0))
    rng = np.random.default_rng(0)
    theirs = np.array([_simulated(rng, height, width) for _ in range(COUNT)])
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    top, left, h, w = ours.T
    assert (top >= 0).all() and (top + h <= height).all()
    assert (left >= 0).all() and (left + w <= width).all()


def test_each_image_is_erased_with_the_probability():
    box = np.asarray(BOXES(jax.random.key(1), COUNT, 32, 32, 0.25))
    assert abs((box[:, 2] > 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / COUNT)


def test_only_the_box_is_erased_and_by_its_fill():
    pixels = np.random.default_rng(2).uniform(1, 2, (64, 24, 30, 3)).astype(np.float32)

    @unoptimized
    def erase(pixels, key):
        zero = erasing.random_erasing(pixels, key, 0.5)
        return zero, erasing.random_erasing(pixels, key, 0.5, "noise")

    zero, noise = map(np.asarray, erase(pixels, jax.random.key(3)))
    inside = (zero == 0).all(axis=-1)
    np.testing.assert_array_equal(zero[~inside], pixels[~inside])
    np.testing.assert_array_equal(noise[~inside], pixels[~inside])
    assert 0.3 < inside.any(axis=(1, 2)).mean() < 0.7
    for image in inside:
        assert (image == image.any(axis=1)[:, None] & image.any(axis=0)[None, :]).all()
    assert stats.kstest(noise[inside].ravel()[:20000], stats.norm.cdf).pvalue > 1e-3


def test_an_image_too_small_for_any_box_is_left(monkeypatch):
    key, pixels = jax.random.key(0), np.ones((COUNT, 1, 1, 3), np.float32)
    box = BOXES(key, COUNT, 1, 1, 1.0)
    monkeypatch.setattr(erasing, "boxes", lambda *_: box)
    erase = unoptimized(lambda pixels: erasing.random_erasing(pixels, key, 1.0))
    np.testing.assert_array_equal(erase(pixels), pixels)
