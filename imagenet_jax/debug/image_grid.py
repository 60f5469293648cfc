"""Grids of pictures with captions."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imagenet_jax.errors import printable

_WHITE = 255
_MIN_SIDE = 128  # pixels, so that the caption below a picture is readable
_LINE_HEIGHT = 14  # of captions, in pixels
_FONT_SIZE = 11  # of captions, in points


def grid(pictures: np.ndarray, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """Return the pictures u8[N, H, W, 3] as one grid u8[rows * (H + gap) + gap, ..., 3] on white.

    `columns`: pictures per row; None: about as many as there are rows.
    """
    count, height, width, _ = pictures.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    shape = (rows * (height + gap) + gap, columns * (width + gap) + gap, 3)
    out = np.full(shape, _WHITE, np.uint8)
    for i, picture in enumerate(pictures):
        top = gap + (i // columns) * (height + gap)
        left = gap + (i % columns) * (width + gap)
        out[top : top + height, left : left + width] = picture
    return out


def captioned(pictures: np.ndarray, captions: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the pictures u8[N, H, W, 3] with captions below them: u8[N, H', W', 3].

    Each line of a caption is cut to the width of its picture. Small pictures are enlarged by a
    whole factor, without interpolation.
    """
    factor = math.ceil(_MIN_SIDE / min(pictures.shape[1:3]))
    large = pictures.repeat(factor, axis=1).repeat(factor, axis=2)
    lines = max(map(len, captions))
    below = np.full((len(large), lines * _LINE_HEIGHT + 4, large.shape[2], 3), _WHITE, np.uint8)
    for strip, caption in zip(below, captions, strict=True):
        strip[:] = _draw_lines(caption, strip.shape[0], strip.shape[1])
    return np.concatenate([large, below], axis=1)


def _draw_lines(lines: Sequence[str], height: int, width: int) -> np.ndarray:
    image = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(_FONT_SIZE)
    for i, line in enumerate(map(printable, lines)):
        if draw.textlength(line, font) > width - 4:
            while line and draw.textlength(line + "...", font) > width - 4:
                line = line[:-1]
            line += "..."
        draw.text((2, i * _LINE_HEIGHT), line, "black", font)
    return np.asarray(image)
