"""What is stored of an image: its file, byte for byte, unless it has to be repaired or resized."""

import io
from typing import NamedTuple

from PIL import Image

from imagenet_jax.data.decode import decode, is_cmyk

_SIGNATURES = {"jpeg": b"\xff\xd8", "png": b"\x89PNG"}


class Storage(NamedTuple):
    """How images are stored.

    Attributes:
      encoding: "jpeg" or "png"; a file of another kind is encoded anew.
      resize: pixels of the shorter side; None keeps the size. Images that are shrunk become JPEGs,
        the others are stored as without it.
      quality: of the JPEGs of resized images, 1 to 100.
    """

    encoding: str = "jpeg"
    resize: int | None = None
    quality: int = 90


class Stored(NamedTuple):
    """The bytes to store of an image, and whether its file was repaired or, instead, resized."""

    encoded: bytes
    repaired: bool = False
    resized: bool = False


def to_store(encoded: bytes, storage: Storage) -> Stored:
    """Return what is stored of an image.

    Every file is decoded, as training would do it, so that what is stored can be trained on.
    Repaired are CMYK JPEGs and files of another kind than `storage.encoding`: their RGB pixels are
    encoded anew, a JPEG with quality 100 and full-resolution colour. Raises UndecodableImage.
    """
    pixels = decode(encoded)
    height, width = pixels.shape[:2]
    side = storage.resize
    if side and side < min(height, width):
        # Sides round as in evaluation, so that Resize(side) afterwards changes nothing.
        size = (
            (int(side * width / height), side)
            if height <= width
            else (side, int(side * height / width))
        )
        image = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
        return Stored(_encode(image, "jpeg", storage.quality, "4:2:0"), resized=True)
    if not encoded.startswith(_SIGNATURES[storage.encoding]) or is_cmyk(encoded):
        return Stored(_encode(Image.fromarray(pixels), storage.encoding, 100, "4:4:4"), True)
    return Stored(encoded)


def _encode(image: Image.Image, encoding: str, quality: int, subsampling: str) -> bytes:
    file = io.BytesIO()
    if encoding == "png":
        image.save(file, "PNG")
    else:
        image.save(file, "JPEG", quality=quality, subsampling=subsampling)
    return file.getvalue()
