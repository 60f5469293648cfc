"""Heat maps, gradients, filters and feature maps as u8 RGB images, and as PNG files."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from imagenet_jax.debug.pictures import make_grid
from imagenet_jax.errors import writing
from imagenet_jax.files import write_atomically

_OPACITY = 0.5  # opacity of a heat map over its image
_RED, _BLUE = np.array([1.0, 0.1, 0.05]), np.array([0.1, 0.3, 1.0])
_INCHES = 2.8  # side of a picture on the sheet
_TITLE_WIDTH = 36  # characters in a line of a title


class Picture(NamedTuple):
    """A picture.

    Attributes:
      method: name of the method, which is part of the file name.
      title: title of the picture on a sheet.
      pixels: u8[H, W, 3].
    """

    method: str
    title: str
    pixels: np.ndarray


class Explanation(NamedTuple):
    """The pictures of one image.

    Attributes:
      name: name of the image.
      pixels: u8[H, W, 3], the model's input, possibly enlarged.
      class_name: the explained class.
      probability: predicted probability of that class.
      pictures: one for each method.
    """

    name: str
    pixels: np.ndarray
    class_name: str
    probability: float
    pictures: tuple[Picture, ...]


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return `heat` f32[H, W], from blue (0) to red (1), over `image` u8[H, W, 3], as u8."""
    colors = matplotlib.colormaps["jet"](np.asarray(heat))[..., :3]
    return _to_u8((1 - _OPACITY) * image / 255 + _OPACITY * colors)


def signed_overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return `heat` f32[H, W], red if positive and blue if negative, over `image` in gray, as u8.

    The color is strongest at the largest magnitude. `image` is u8[H, W, 3].
    """
    scaled = _scale(heat)[..., None]
    gray = 0.25 + np.broadcast_to(image.mean(-1, keepdims=True) / 255, image.shape) / 2
    return _to_u8(gray + 0.85 * np.abs(scaled) * (np.where(scaled > 0, _RED, _BLUE) - gray))


def signed(values: np.ndarray) -> np.ndarray:
    """Return f[...] as u8[...]: 0 is mid-gray, and the largest magnitude is black or white."""
    return _to_u8(0.5 + _scale(values) / 2)


def filter_tiles(kernel: np.ndarray) -> np.ndarray:
    """Return the filters of f[kh, kw, 3, K] as u8[K, kh, kw, 3], each scaled separately."""
    return np.stack([signed(tile) for tile in np.moveaxis(np.asarray(kernel), -1, 0)])


def strongest(maps: np.ndarray, limit: int = 64) -> np.ndarray:
    """Return the indices of the channels of f[h, w, K] with the largest mean magnitude, ascending.

    Returns i64[min(K, limit)].
    """
    magnitude = np.abs(np.asarray(maps, np.float32)).mean((0, 1))
    return np.sort(np.argsort(-magnitude, kind="stable")[:limit])


def scale_channels(maps: np.ndarray, limit: int = 64) -> np.ndarray:
    """Return the `strongest` channels of f[h, w, K], each scaled to [0, 1]: f32[N, h, w]."""
    shown = np.moveaxis(np.asarray(maps, np.float32)[..., strongest(maps, limit)], -1, 0)
    low, high = shown.min((1, 2), keepdims=True), shown.max((1, 2), keepdims=True)
    return (shown - low) / np.where(high > low, high - low, 1)


def feature_maps(maps: np.ndarray) -> np.ndarray:
    """Return the strongest channels of f[h, w, K] as a grid u8[H, W, 3]. Brighter is larger.

    Each map is enlarged, without smoothing, to at least 32 pixels.
    """
    tiles = _to_u8(matplotlib.colormaps["viridis"](scale_channels(maps))[..., :3])
    return grid(tiles, -(-32 // min(maps.shape[:2])))


def grid(tiles: np.ndarray, zoom: int) -> np.ndarray:
    """Arrange u8[N, h, w, 3] in a square grid with white gaps, each pixel `zoom` pixels wide."""
    gap = max(1, zoom // 3)
    return make_grid(tiles.repeat(zoom, 1).repeat(zoom, 2), gap=gap)[gap:-gap, gap:-gap]


def _scale(values: np.ndarray) -> np.ndarray:
    """Divide by the largest magnitude, if it is not 0."""
    values = np.asarray(values, np.float32)
    return values / (np.abs(values).max() or 1)


def _to_u8(values: np.ndarray) -> np.ndarray:
    return np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)


def write_folder(
    folder: Path, explanations: Sequence[Explanation], of_model: Sequence[Picture]
) -> list[Path]:
    """Write IMAGE.png and IMAGE_METHOD.png for each image, and METHOD.png for the model's pictures.

    Images with the same name are numbered. Returns the files. Raises UserError if one cannot be
    written.
    """
    files = {picture.method: picture.pixels for picture in of_model}
    for explanation in explanations:
        stem = Path(explanation.name).stem.lstrip("-") or "image"
        number, name = 2, stem
        while name in files:
            name, number = f"{stem}_{number}", number + 1
        files[name] = explanation.pixels
        files |= {f"{name}_{picture.method}": picture.pixels for picture in explanation.pictures}
    paths = [folder / f"{name}.png" for name in files]
    for path, pixels in zip(paths, files.values(), strict=True):
        _write(path, Image.fromarray(pixels).save)
    return paths


def write_sheet(
    path: Path, explanations: Sequence[Explanation], of_model: Sequence[Picture]
) -> list[Path]:
    """Write one PNG with a row for each image and one for the model's pictures. Return [path].

    Raises UserError if it cannot be written.
    """
    rows: list[list[tuple[str, np.ndarray]]] = []
    for explanation in explanations:
        name = Path(explanation.name).name
        title = f"{name}: {explanation.class_name}, {explanation.probability:.1%}"
        own = [(picture.title, picture.pixels) for picture in explanation.pictures]
        rows.append([(title, explanation.pixels), *own])
    model = [(picture.title, picture.pixels) for picture in of_model]
    if len(rows) == 1:
        rows[0] += model
    elif model:
        rows.append(model)
    columns = max(map(len, rows))
    size = (_INCHES * columns, (_INCHES + 0.4) * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    grid_axes = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid_axes.flat:
        axes.axis("off")
    for row, pictures in zip(grid_axes, rows, strict=True):
        for axes, (title, pixels) in zip(row, pictures, strict=False):
            axes.imshow(pixels, interpolation="none")
            axes.set_title(
                "\n".join(textwrap.wrap(title, _TITLE_WIDTH)), fontsize=8, parse_math=False
            )
    _write(path, lambda part: figure.savefig(part, dpi=100, format="png"))
    return [path]


def _write(path: Path, write: Callable[[Path], object]) -> None:
    with writing(f"--out={path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
