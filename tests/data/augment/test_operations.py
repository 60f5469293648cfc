"""Color operations against Pillow's and colorsys'; torchvision's are in tests/parity.

Pillow rounds a gray to the nearest level where torchvision cuts it off, and the mean gray to a
whole level: that is at most one level of the gray, so up to |factor - 1| levels of the result,
and one more for the cutting off.
"""

import colorsys
import functools

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from imagenet_jax.data.augment import operations
from imagenet_jax.runtime import xla

unoptimized = functools.partial(jax.jit, compiler_options=xla.options(optimize=False))
compiled = functools.cache(unoptimized)  # one program for all amounts


def _images():
    """Noise, a gradient with few levels, dark noise, two levels, one level: u8[5, 23, 30, 3]."""
    rng = np.random.default_rng(0)
    shape = (23, 30, 3)
    gradient = 40 + np.add.outer(2 * np.arange(23), np.arange(30))[..., None] + [0, 30, 60]
    return np.stack(
        [
            rng.integers(0, 256, shape),
            gradient,
            rng.integers(5, 60, shape),
            255 * rng.integers(0, 2, shape),
            np.full(shape, 77),
        ]
    ).astype(np.uint8)


IMAGES = _images()


def _by_pillow(operation):
    return np.stack([np.asarray(operation(Image.fromarray(image))) for image in IMAGES])


def _apply(operation, *amounts):
    amounts = [np.full(len(IMAGES), amount) for amount in amounts]
    return np.asarray(compiled(operation)(IMAGES, *amounts))


def _equalize(images):
    return operations.lookup(images, operations.equalize_table(images))


def _autocontrast(images):
    return operations.lookup(images, operations.autocontrast_table(images))


def _difference(ours, theirs):
    assert ours.dtype == np.uint8
    return np.abs(ours.astype(int) - theirs).max()


@pytest.mark.parametrize(
    ("operation", "pillow"),
    [
        (operations.brightness, ImageEnhance.Brightness),
        (operations.saturation, ImageEnhance.Color),
        (operations.contrast, ImageEnhance.Contrast),
        (operations.sharpness, ImageEnhance.Sharpness),
    ],
)
@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.9])
def test_blends_are_pillows(operation, pillow, factor):
    ours = _apply(operation, factor - 1)
    theirs = _by_pillow(lambda image: pillow(image).enhance(factor))
    assert _difference(ours, theirs) <= (0 if factor == 1 else 1 + abs(factor - 1))


def test_tables_are_pillows():
    assert _difference(_apply(operations.invert), _by_pillow(ImageOps.invert)) == 0
    assert _difference(_apply(_equalize), _by_pillow(ImageOps.equalize)) == 0
    # torchvision divides in float32, which may end one below a whole number.
    assert _difference(_apply(_autocontrast), _by_pillow(ImageOps.autocontrast)) <= 1
    for bits in (1, 4, 8):
        theirs = _by_pillow(lambda image, b=bits: ImageOps.posterize(image, b))
        assert _difference(_apply(operations.posterize, bits), theirs) == 0
    for threshold in (0, 100, 255):
        theirs = _by_pillow(lambda image, t=threshold: ImageOps.solarize(image, t))
        assert _difference(_apply(operations.solarize, threshold), theirs) == 0


def test_posterize_to_no_bits_is_black():
    assert not _apply(operations.posterize, 0).any()


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.3])
def test_hue_is_that_of_colorsys(turn):
    theirs = np.empty(IMAGES.shape)
    for index in np.ndindex(IMAGES.shape[:3]):
        h, s, v = colorsys.rgb_to_hsv(*(IMAGES[index] / 255))
        theirs[index] = np.array(colorsys.hsv_to_rgb((h + turn) % 1, s, v)) * 255
    assert np.abs(_apply(operations.hue, turn) - theirs).max() < 1 + 1e-3


def test_each_image_has_its_own_amount():
    change = np.linspace(-1, 1, len(IMAGES))
    for operation in (
        operations.brightness,
        operations.contrast,
        operations.saturation,
        operations.sharpness,
    ):
        together = compiled(operation)(IMAGES, change)
        for i in range(len(IMAGES)):
            alone = compiled(operation)(np.stack([IMAGES[i]] * 5), np.full(5, change[i]))
            np.testing.assert_array_equal(together[i], alone[0])


def test_jitter_draws_factors_within_its_bounds():
    gray = np.full((512, 4, 4, 3), 100, np.uint8)
    jitter = unoptimized(operations.jitter, static_argnums=2)
    out = np.asarray(jitter(gray, jax.random.key(0), (0.4, 0.0, 0.0, 0.0)))[:, 0, 0, 0]
    assert 59 <= out.min() < 65 and 135 < out.max() <= 140
    assert abs(out.mean() - 100) < 4
    halves = np.asarray(jitter(gray, jax.random.key(0), (2.0, 0.0, 0.0, 0.0)))[:, 0, 0, 0]
    assert halves.max() == 255 and 0 <= halves.min() < 10  # factors in [0, 3]


def test_jitter_takes_the_operations_in_different_orders():
    @unoptimized
    def jitter(seeds):
        keys = jax.vmap(jax.random.key)(seeds)
        return jax.lax.map(lambda key: operations.jitter(IMAGES[:1], key, (0.9, 0, 0.9, 0.5)), keys)

    assert len({images.tobytes() for images in np.asarray(jitter(np.arange(12)))}) == 12


def test_lighting_has_alexnets_covariance():
    vectors, values = np.array(operations.EIGENVECTORS), np.array(operations.EIGENVALUES)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=2e-4)
    lighting = unoptimized(lambda x, key: operations.lighting(x, key, 0.1, (1, 1, 1)))
    shift = np.asarray(lighting(np.zeros((50000, 1, 1, 3), np.float32), jax.random.key(0)))
    assert shift.shape == (50000, 1, 1, 3)
    want = vectors @ np.diag((0.1 * values) ** 2) @ vectors.T
    np.testing.assert_allclose(np.cov(shift[:, 0, 0].T), want, atol=0.03 * want.max())
