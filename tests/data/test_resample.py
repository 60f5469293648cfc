"""Resizing against Pillow on images that show every difference: noise, and noise of 0 and 255."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagenet_jax.data import decode, resample
from imagenet_jax.data.sampler import record_uniforms

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def _noise(height, width, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return pixels if seed % 2 else pixels // 128 * 255


def _png(pixels):

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _assert_equal(got, want):
    """To one level; to two where both passes round a number that lies between two levels."""
    difference = np.abs(got.astype(int) - np.asarray(want).astype(int))
    assert difference.max() <= 2
    assert (difference > 1).sum() <= max(3, difference.size // 1000)


@pytest.mark.parametrize("interpolation", FILTERS)
@settings(max_examples=150)
@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    tall=st.integers(1, 90),
    wide=st.integers(1, 90),
    seed=st.integers(0, 99),
)
def test_a_resized_image_is_pillows(interpolation, height, width, tall, wide, seed):
    pixels, out = _noise(height, width, seed), np.zeros((tall, wide, 3), np.uint8)
    box = (0, 0, width, height)
    resample.resize(pixels, box, box, interpolation, out)
    _assert_equal(out, Image.fromarray(pixels).resize((wide, tall), FILTERS[interpolation]))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [(40, 130), (130, 40), (64, 65), (30, 300)])
def test_an_evaluation_crop_is_cut_from_pillows_whole_image(interpolation, size):
    """The order of the passes is that of the whole image, of which only a part is computed."""
    width, height = size
    pixels, out = _noise(height, width, 0), np.zeros((24, 24, 3), np.uint8)
    decode.eval_image(_png(pixels), out, resize=32, interpolation=interpolation)
    wide, tall = (32, 32 * height // width) if width < height else (32 * width // height, 32)
    whole = Image.fromarray(pixels).resize((wide, tall), FILTERS[interpolation])
    left, top = round((wide - 24) / 2), round((tall - 24) / 2)
    _assert_equal(out, whole.crop((left, top, left + 24, top + 24)))


@pytest.mark.parametrize("interpolation", FILTERS)
def test_training_crops_are_pillows(interpolation):
    pixels, crop = _noise(200, 120, 0), {"scale": (0.05, 1.0), "ratio": (0.2, 5.0)}
    encoded, out = _png(pixels), np.zeros((48, 40, 3), np.uint8)
    zeros = np.zeros(40, int)
    for u in record_uniforms(1, zeros, np.arange(40), zeros, decode.CROP_DRAWS):
        decode.train_image(encoded, out, u, interpolation=interpolation, **crop)
        top, left, height, width = decode.random_crop_box(200, 120, u, *crop.values())
        image = Image.fromarray(pixels).crop((left, top, left + width, top + height))
        _assert_equal(out, image.resize((40, 48), FILTERS[interpolation]))
