"""Several pictures as one: side by side, and with a caption below each."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imagenet_jax.markup import printable

_WHITE = 255
_SMALLEST = 128  # pixels of a side, so that a caption below it can be read
_LINE = 14  # pixels of height of a line of a caption
_FONT = 11  # points


def grid(pictures: np.ndarray, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """u8[N, H, W, 3] row by row on white, as u8[rows * (H + gap) + gap, ..., 3].

    `columns` pictures a row; None: as near to a square as they fill.
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
    """u8[N, H, W, 3] with the lines of each caption below it, cut to its width: u8[N, H', W', 3].

    Small pictures are enlarged by a whole factor, each pixel to a square.
    """
    factor = math.ceil(_SMALLEST / min(pictures.shape[1:3]))
    large = pictures.repeat(factor, axis=1).repeat(factor, axis=2)
    lines = max(map(len, captions))
    below = np.full((len(large), lines * _LINE + 4, large.shape[2], 3), _WHITE, np.uint8)
    for strip, caption in zip(below, captions, strict=True):
        strip[:] = _written(caption, strip.shape[0], strip.shape[1])
    return np.concatenate([large, below], axis=1)


def _written(lines: Sequence[str], height: int, width: int) -> np.ndarray:
    image = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(_FONT)
    for i, line in enumerate(map(printable, lines)):
        if draw.textlength(line, font) > width - 4:
            while line and draw.textlength(line + "...", font) > width - 4:
                line = line[:-1]
            line += "..."
        draw.text((2, i * _LINE), line, "black", font)
    return np.asarray(image)
