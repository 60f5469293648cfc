"""Explanations as PNG files: one of each picture in a folder, or all on one sheet."""

import contextlib
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image

from imagenet_jax.errors import UserError
from imagenet_jax.files import part_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

_INCHES = 2.8  # of a picture on the sheet
_WRAPPED = 36  # characters of a title's line


class Picture(NamedTuple):
    """One picture.

    Attributes:
      kind: of which method, for the name of its file.
      title: what it shows.
      pixels: u8[H, W, 3].
    """

    kind: str
    title: str
    pixels: np.ndarray


class Explanation(NamedTuple):
    """The pictures of one image.

    Attributes:
      name: of the image.
      pixels: u8[H, W, 3], what the model saw, perhaps enlarged.
      class_name: which class is explained.
      probability: of that class.
      pictures: one of each method.
    """

    name: str
    pixels: np.ndarray
    class_name: str
    probability: float
    pictures: tuple[Picture, ...]


def write(
    out: Path, explanations: Sequence[Explanation], of_model: Sequence[Picture]
) -> list[Path]:
    """`write_sheet` where `out` ends in .png, else `write_folder`."""
    is_sheet = out.suffix.lower() == ".png"
    return (write_sheet if is_sheet else write_folder)(out, explanations, of_model)


def write_folder(
    folder: Path, explanations: Sequence[Explanation], of_model: Sequence[Picture]
) -> list[Path]:
    """Write IMAGE.png and IMAGE_METHOD.png of each image, and METHOD.png of the model's pictures.

    Images of the same name are told apart by a number. Returns the files. Raises UserError where
    one cannot be written.
    """
    written, used = [], {picture.kind for picture in of_model}
    for picture in of_model:
        written.append(_save(folder / f"{picture.kind}.png", picture.pixels))
    for explanation in explanations:
        stem = Path(explanation.name).stem.lstrip("-") or "image"
        number, name = 2, stem
        while name in used:
            name, number = f"{stem}_{number}", number + 1
        used.add(name)
        written.append(_save(folder / f"{name}.png", explanation.pixels))
        for picture in explanation.pictures:
            written.append(_save(folder / f"{name}_{picture.kind}.png", picture.pixels))
    return written


def write_sheet(
    path: Path, explanations: Sequence[Explanation], of_model: Sequence[Picture]
) -> list[Path]:
    """Write one PNG: a row of each image, then a row of the model's pictures; returns [path].

    Raises UserError where it cannot be written.
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
    figure, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(_INCHES * columns, (_INCHES + 0.4) * len(rows)),
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.flat:
        axis.axis("off")
    for row, pictures in zip(axes, rows, strict=True):
        for axis, (title, pixels) in zip(row, pictures, strict=False):
            axis.imshow(pixels, interpolation="none")
            axis.set_title(_wrapped(title), fontsize=8, parse_math=False)
    try:
        _replace(path, lambda part: figure.savefig(part, dpi=100, format="png"))
    finally:
        plt.close(figure)
    return [path]


def _save(path: Path, pixels: np.ndarray) -> Path:
    _replace(path, lambda part: Image.fromarray(pixels).save(part, "PNG"))
    return path


def _replace(path: Path, write_to: Callable[[Path], object]) -> None:
    """Write the file beside, then put it in place; UserError where that fails."""
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to(part)
        part.replace(path)
    except OSError as e:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UserError(f"--out={path} cannot be written: {e.strerror}") from e


def _wrapped(title: str) -> str:
    return "\n".join(textwrap.wrap(title, _WRAPPED))
