"""Heat maps, gradients, filters and feature maps as u8 RGB images."""

import matplotlib
import numpy as np

_GAP = 1  # pixels between the tiles of a grid, before enlargement
_OPACITY = 0.5  # of a heat map over its image
_AGAINST_AND_FOR = np.array([[0.1, 0.3, 1.0], [1.0, 0.1, 0.05]])  # blue and red


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """u8[H, W, 3]: blue where `heat` f32[H, W] in [0, 1] is 0, red where it is 1, over the image.

    Args:
      image: u8[H, W, 3].
    """
    colours = matplotlib.colormaps["jet"](np.asarray(heat))[..., :3]
    return _to_u8((1 - _OPACITY) * image / 255 + _OPACITY * colours)


def signed_overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """u8[H, W, 3]: red where `heat` f32[H, W] is positive, blue where negative, over the image in
    grey; the colour is full at the largest magnitude.

    Args:
      image: u8[H, W, 3].
    """
    scaled = _scaled(heat)[..., None]
    grey = 0.25 + np.broadcast_to(image.mean(-1, keepdims=True) / 255, image.shape) / 2
    colours = np.where(scaled > 0, _AGAINST_AND_FOR[1], _AGAINST_AND_FOR[0])
    return _to_u8(grey + 0.85 * np.abs(scaled) * (colours - grey))


def signed(values: np.ndarray) -> np.ndarray:
    """u8 of the shape of `values` f[...]: 0 is mid-grey, the largest magnitude black or white."""
    return _to_u8(0.5 + _scaled(values) / 2)


def filters(kernel: np.ndarray, zoom: int = 6) -> np.ndarray:
    """u8[H, W, 3]: the filters of f[kh, kw, 3, K] as colours in a grid, each scaled by itself.

    Args:
      zoom: pixels to a side of each weight.
    """
    tiles = [signed(tile) for tile in np.moveaxis(np.asarray(kernel, np.float32), -1, 0)]
    return grid(np.stack(tiles), zoom)


def strongest(maps: np.ndarray, limit: int = 64) -> np.ndarray:
    """i64[min(K, limit)]: the channels of f[h, w, K] with the largest mean magnitude, in order."""
    magnitude = np.abs(np.asarray(maps, np.float32)).mean((0, 1))
    return np.sort(np.argsort(-magnitude, kind="stable")[:limit])


def feature_maps(maps: np.ndarray, limit: int = 64, side: int = 32) -> np.ndarray:
    """u8[H, W, 3]: the `strongest` channels of f[h, w, K] in a grid, from minimum (dark)
    to maximum (bright) of each.

    Args:
      limit: channels to show.
      side: pixels at least to a side of each map, which is enlarged without smoothing.
    """
    shown = np.moveaxis(np.asarray(maps, np.float32)[..., strongest(maps, limit)], -1, 0)
    low, high = shown.min((1, 2), keepdims=True), shown.max((1, 2), keepdims=True)
    scaled = (shown - low) / np.where(high > low, high - low, 1)
    tiles = _to_u8(matplotlib.colormaps["viridis"](scaled)[..., :3])
    return grid(tiles, -(-side // min(maps.shape[:2])))


def grid(tiles: np.ndarray, zoom: int = 1) -> np.ndarray:
    """u8[N, h, w, 3] -> u8[H, W, 3]: about as many rows as columns, white between the tiles.

    Args:
      zoom: pixels to a side of each pixel.
    """
    count, height, width = tiles.shape[:3]
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    large = tiles.repeat(zoom, 1).repeat(zoom, 2)
    height, width, gap = height * zoom, width * zoom, _GAP * max(1, zoom // 3)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    sheet = np.full(shape, 255, np.uint8)
    for i, tile in enumerate(large):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return sheet


def _scaled(values: np.ndarray) -> np.ndarray:
    """Divided by the largest magnitude; zeros where all are 0."""
    values = np.asarray(values, np.float32)
    return values / (np.abs(values).max() or 1)


def _to_u8(values: np.ndarray) -> np.ndarray:
    return np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
