"""Images that belong to no data set: files, folders of them, standard input."""

import sys
from collections.abc import Iterable
from typing import NamedTuple

from imagenet_jax.data.walk import IMAGE_SUFFIXES, walk
from imagenet_jax.errors import UserError, expand_user

STANDARD_INPUT = "-"


class LooseImage(NamedTuple):
    """An image by its name: a path, or "-" for what comes on standard input."""

    name: str

    def read(self) -> bytes:
        """The encoded bytes. Raises UserError, naming the image, where there are none."""
        try:
            if self.name == STANDARD_INPUT:
                encoded = sys.stdin.buffer.read()
            else:
                encoded = expand_user(self.name).read_bytes()
        except OSError as e:
            raise UserError(f"image {self.name} cannot be read: {e.strerror}") from e
        if not encoded:
            raise UserError(f"image {self.name} is empty")
        return encoded


def find_images(names: Iterable[str]) -> tuple[list[LooseImage], list[str]]:
    """(images, what is wrong with the other names), in the order of `names`.

    A folder stands for the images in it and below, through links, sorted by path; there, a file is
    an image by its suffix. Any other name is taken for an image, whatever its suffix.
    """
    images: list[LooseImage] = []
    problems: list[str] = []
    for name in names:
        path = expand_user(name)
        if name == STANDARD_INPUT or not path.is_dir():
            images.append(LooseImage(name))
            continue
        found = walk(path)
        problems += [f"{path / name} {why}" for name, why in found.problems]
        below = [str(path / file.name) for file in found.files]
        if not below:
            problems.append(f"folder {name} has no images ({' '.join(IMAGE_SUFFIXES)})")
        images += map(LooseImage, sorted(below))
    return images, problems
