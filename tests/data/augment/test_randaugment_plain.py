"""big_vision's RandAugment: each operation is computed again with NumPy and Pillow."""

from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy import stats

from imagenet_jax.data.augment import randaugment_plain as plain
from imagenet_jax.runtime import xla

HEIGHT, WIDTH = 90, 110
CENTER = (7, 80)  # of cutout's box, which leaves the image


def _images():
    """Noise, and smooth waves."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = 128 + 100 * np.sin(y / 5)[..., None] * np.cos(x[..., None] / np.array([4, 5, 6]))
    return np.stack([rng.integers(0, 256, waves.shape), waves]).astype(np.uint8)


IMAGES = _images()
unoptimized = partial(jax.jit, compiler_options=xla.options(optimize=False))
STEP = unoptimized(plain.step, static_argnums=2)


def _recomputed(name, image, level, sign):
    """One operation on u8[H, W, 3], with the constants of big_vision's level_to_arg."""
    picture, x = Image.fromarray(image), image.astype(float)

    def moved(*matrix):
        return np.asarray(
            picture.transform(
                picture.size,
                Image.Transform.AFFINE,
                matrix,
                Image.Resampling.NEAREST,
                fillcolor=(128,) * 3,
            )
        )

    def away_from(other):
        return np.clip(other + (level * 0.18 + 0.1) * (x - other), 0, 255).astype(np.uint8)

    def smooth():
        out = x.copy()
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(0, 1))
        out[1:-1, 1:-1] = (windows.sum(axis=(3, 4)) + 4 * x[1:-1, 1:-1]) // 13
        return out

    def cut():
        out, half = image.copy(), int(level * 4)
        top, left = (max(0, center - half) for center in CENTER)
        out[top : CENTER[0] + half, left : CENTER[1] + half] = 128
        return out

    degrees, slope, pixels = sign * 3 * level, sign * 0.03 * level, sign * 10 * level
    return {
        "autocontrast": lambda: np.asarray(ImageOps.autocontrast(picture)),
        "equalize": lambda: np.asarray(ImageOps.equalize(picture)),
        "invert": lambda: 255 - image,
        "rotate": lambda: np.asarray(picture.rotate(degrees, fillcolor=(128,) * 3)),
        "posterize": lambda: image // 2 ** (8 - int(0.4 * level)) * 2 ** (8 - int(0.4 * level)),
        "solarize": lambda: np.where(image < np.uint8(int(25.6 * level) & 255), image, 255 - image),
        "color": lambda: away_from(np.floor(x @ [0.2989, 0.587, 0.114])[..., None]),
        "contrast": lambda: away_from(HEIGHT * WIDTH // 256),
        "brightness": lambda: away_from(0),
        "sharpness": lambda: away_from(smooth()),
        "shear_x": lambda: moved(1, slope, 0, 0, 1, 0),
        "shear_y": lambda: moved(1, 0, 0, slope, 1, 0),
        "translate_x": lambda: moved(1, 0, -pixels, 0, 1, 0),
        "translate_y": lambda: moved(1, 0, 0, 0, 1, -pixels),
        "cutout": cut,
        "solarize_add": lambda: np.where(image < 128, np.minimum(x + int(11 * level), 255), x),
    }[name]()


@pytest.mark.parametrize("level", [3, 10])
def test_each_operation_is_big_visions(level):
    cases = [(name, sign) for name in plain.OPERATIONS for sign in (1, -1)]
    rows = np.repeat(IMAGES, len(cases), axis=0)
    names, signs = zip(*cases * len(IMAGES), strict=True)
    draws = plain.Draws(
        np.array([plain.OPERATIONS.index(name) for name in names]),
        np.array(signs) < 0,
        *np.broadcast_to(np.array(CENTER)[:, None], (2, len(rows))),
    )
    ours = np.asarray(STEP(rows, draws, level)).astype(int)
    for image, got, name, sign in zip(rows, ours, names, signs, strict=True):
        difference = np.abs(got - _recomputed(name, image, level, sign))
        if name in ("rotate", "shear_x", "shear_y"):  # a point half-way between two pixels
            assert (difference > 0).any(axis=-1).mean() < 0.01, (name, sign)
        elif name in ("autocontrast", "color", "contrast", "sharpness"):
            # Rounding of a blend, and of a blurred value before it.
            assert difference.max() <= 1 and (name == "sharpness" or (difference > 0).mean() < 0.05)
        else:
            assert difference.max() == 0, (name, sign)


def test_operations_signs_and_centers_are_drawn_evenly():
    draw = unoptimized(plain.draw, static_argnums=1)
    draws = draw(jax.random.key(0), 16000, HEIGHT, WIDTH)
    for values, size in ((draws.operation, 16), (draws.row, HEIGHT), (draws.column, WIDTH)):
        assert stats.chisquare(np.bincount(values, minlength=size)).pvalue > 1e-3
    assert abs(np.asarray(draws.negative).mean() - 0.5) < 0.02


@pytest.mark.full
def test_two_operations_are_two_steps():
    key = jax.random.key(2)
    rows = np.repeat(IMAGES, 4, axis=0)
    expected = rows
    for k in jax.random.split(key, 2):
        expected = STEP(expected, plain.draw(k, *rows.shape[:3]), 10)
    np.testing.assert_array_equal(plain.randaugment_plain(rows, key, 2, 10), expected)
