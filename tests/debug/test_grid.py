"""Grids of pictures against a composition with NumPy's stack functions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_jax.debug.pictures import add_captions, make_grid


def _pictures(count, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@settings(max_examples=20)
@given(st.integers(1, 10), st.integers(1, 5), st.integers(1, 5), st.integers(0, 3))
def test_grid_puts_each_picture_in_its_cell_on_white(count, height, width, gap):
    pictures = _pictures(count, height, width)
    columns = next(n for n in (1, 2, 3, 4) if n * n >= count)
    rows = -(-count // columns)
    blank = np.full((height, width, 3), 255, np.uint8)
    cells = [*pictures, *[blank] * (rows * columns - count)]
    frame = ((gap, 0), (gap, 0), (0, 0))  # each cell with the gap above and left of it
    framed = [np.pad(cell, frame, constant_values=255) for cell in cells]
    strips = [np.hstack(framed[r * columns : (r + 1) * columns]) for r in range(rows)]
    expected = np.pad(np.vstack(strips), ((0, gap), (0, gap), (0, 0)), constant_values=255)
    np.testing.assert_array_equal(make_grid(pictures, gap), expected)


@pytest.mark.parametrize(("count", "across", "down"), [(1, 1, 1), (4, 2, 2), (5, 3, 2), (16, 4, 4)])
def test_grid_is_nearly_square(count, across, down):
    assert make_grid(_pictures(count, 3, 5), gap=1).shape == (down * 4 + 1, across * 6 + 1, 3)


def test_small_pictures_are_enlarged_and_captions_are_below():
    pictures = _pictures(2, 16, 16)
    out = add_captions(pictures, [("true: 3", "said 97%: 8"), ("", "")])
    large = np.kron(pictures, np.ones((1, 8, 8, 1), np.uint8))  # 16 -> 128
    np.testing.assert_array_equal(out[:, :128], large)
    below = out[:, 128:]
    assert (below[0] < 128).any(axis=-1).sum() > 50  # there is text
    assert (below[1] == 255).all()


def test_a_caption_is_cut_to_the_width_of_its_picture():
    pictures = _pictures(2, 128, 128)
    long = add_captions(pictures, [("black-footed ferret, polecat, Mustela nigripes",), ("x",)])
    assert long.shape[:3] == (2, 128 + 14 + 4, 128)
    assert (long[0, 128:, 126:] == 255).all()  # the line ends before the edge


def test_large_pictures_are_not_enlarged():
    pictures = _pictures(1, 224, 224)
    np.testing.assert_array_equal(add_captions(pictures, [("a",)])[:, :224], pictures)


def test_a_caption_with_a_line_break_stays_one_line():
    pictures = _pictures(1, 128, 128)
    np.testing.assert_array_equal(
        add_captions(pictures, [("honey\nbee",)]), add_captions(pictures, [("honey\\nbee",)])
    )
