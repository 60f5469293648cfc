"""Image formats: JPEG headers, formats that only Pillow reads, and the memory that decoding takes.

Pillow reads what libjpeg-turbo (simplejpeg) does not: other formats, CMYK, and unusual JPEGs. An
image that would need more than 1 GiB to decode is rejected.
"""

import functools
import io
import logging
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from imagenet_jax.errors import UserError, one_line

MAX_BYTES = 2**30  # memory to decode and resample one image, besides its file

# Bytes per pixel: of the RGB result and a copy for resampling; of a Pillow image by mode (4 for
# other modes); and the most that Pillow's decoder of a format needs in addition.
RESULT_BYTES = 6
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
_FORMAT_BYTES = {
    "JPEG": 8, "MPO": 8, "PNG": 0, "GIF": 8, "BMP": 8, "TIFF": 8, "PPM": 8, "WEBP": 12,
    "AVIF": 24, "JPEG2000": 24,
}  # fmt: skip
_BAND_PIXELS = 2**18  # converted from Pillow to NumPy at a time, with 10 bytes of buffers per pixel

# JPEG markers
_BASELINE, _SEQUENTIAL, _RESTARTS, _SCAN = 0xC0, (0xC0, 0xC1, 0xC9), 0xDD, 0xDA


def _silence_pillow() -> None:
    """Suppress Pillow's warnings and log messages, which do not name the image.

    They are about metadata and transparency, which do not affect RGB pixels (the doctor reports
    them), and about large images, which `check_memory` rejects.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


_silence_pillow()


class UndecodableImage(UserError):
    """The bytes are not an image, or the image is damaged or too large."""


def check_memory(width: int, height: int, bytes_per_pixel: int) -> None:
    """Raise UndecodableImage if decoding would take more than MAX_BYTES."""
    needed = width * height * bytes_per_pixel
    if needed > MAX_BYTES:
        raise UndecodableImage(
            f"{width}x{height} pixels take up to {needed / 1e6:,.0f} MB of memory to decode, more "
            f"than the {MAX_BYTES / 1e6:,.0f} MB that one image may take; shrink the image"
        )


def decode_with_pillow(encoded: bytes, buffer: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """Decode any format into `buffer(height, width)`: u8[H, W, 3]. Raises UndecodableImage.

    Pixels are those of Pillow's `convert("RGB")`, which torchvision uses: gray is repeated, CMYK is
    converted, palettes are looked up, and alpha is dropped. Only the first frame of an animation is
    used. 16-bit gray is scaled to 8 bits (32-bit gray is first clipped to 16 bits). EXIF rotation
    is ignored, as in torchvision and in tfds's ImageNet.
    """
    with open_image(encoded) as image:
        try:
            image.load()
            pixels = buffer(image.height, image.width)
            rows = max(1, _BAND_PIXELS // image.width)
            for top in range(0, image.height, rows):
                bottom = min(top + rows, image.height)
                whole = bottom - top == image.height
                band = image if whole else image.crop((0, top, image.width, bottom))
                pixels[top:bottom] = _to_rgb(band)
        except Exception as e:  # Pillow's plugins raise anything for a damaged file
            raise _undecodable(e) from e
    return pixels


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        gray = np.clip(np.asarray(image).astype(np.int32), 0, 65535)
        image = Image.fromarray((gray // 257).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def open_image(encoded: bytes) -> Image.Image:
    """Open an image with Pillow, without decoding it.

    Raises UndecodableImage, also for an image that would take more than MAX_BYTES to decode.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=_known_formats())
    except UnidentifiedImageError as e:
        what = f"starts with {encoded[:12]!r}" if encoded else "is empty"
        raise UndecodableImage(
            f"not an image in a known format, or its header is damaged: the file {what}"
        ) from e
    except Exception as e:
        raise _undecodable(e) from e
    extra = 0 if has_one_scan(encoded) else _FORMAT_BYTES[str(image.format)]
    check_memory(*image.size, RESULT_BYTES + _MODE_BYTES.get(image.mode, 4) + extra)
    return image


@functools.cache
def _known_formats() -> list[str]:
    """Return the formats with known memory use. They do not include EPS, which runs Ghostscript."""
    Image.init()
    return [name for name in _FORMAT_BYTES if name in Image.OPEN]


def _undecodable(error: Exception) -> UndecodableImage:
    return UndecodableImage(f"{type(error).__name__}: {one_line(error)}")


def is_cmyk(encoded: bytes) -> bool:
    """Return whether an image that can be decoded is CMYK or YCCK."""
    header = read_jpeg_header(encoded)
    if header:
        return header.is_cmyk
    with open_image(encoded) as image:
        return image.mode == "CMYK"


class JpegHeader(NamedTuple):
    """Size in pixels, and whether there are four components: CMYK or YCCK."""

    height: int
    width: int
    is_cmyk: bool


def read_jpeg_header(encoded: bytes) -> JpegHeader | None:
    """Return the header of a JPEG that simplejpeg can decode, or None for anything else."""
    if encoded[:2] != b"\xff\xd8":
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(encoded)
    except (ValueError, KeyError):  # KeyError: unknown chroma subsampling, such as 4:4:1
        return None
    return JpegHeader(height, width, colors in ("CMYK", "YCCK"))


def find_height_field(encoded: bytes) -> int | None:
    """Return the offset of the height in a JPEG whose first rows can be decoded alone, else None.

    The rows must be coded in one pass from the top, without restart markers, because libjpeg
    reports a missing marker as an error. JPEGs with four components are excluded, because
    simplejpeg converts them to RGB at the end, and only if libjpeg reports no missing rows.
    """
    found = _find_segments(encoded)
    frame, restarts = found.get(_BASELINE), found.get(_RESTARTS)
    if frame is None or encoded[frame + 5 : frame + 6] not in (b"\1", b"\3"):
        return None
    if restarts is not None and any(encoded[restarts : restarts + 2]):
        return None
    return frame + 1 if has_one_scan(encoded) else None


def has_one_scan(encoded: bytes) -> bool:
    """Return whether the first scan of a JPEG has all components, so that it is the only scan.

    For other JPEGs, libjpeg stores coefficients: two bytes per component and pixel.
    """
    found = _find_segments(encoded)
    frame = next((found[marker] for marker in _SEQUENTIAL if marker in found), None)
    if frame is None or _SCAN not in found:
        return False
    return encoded[frame + 5 : frame + 6] == encoded[found[_SCAN] : found[_SCAN] + 1]


def _find_segments(encoded: bytes) -> dict[int, int]:
    """Return marker -> offset of its data, for the segments of a JPEG up to its first scan."""
    found: dict[int, int] = {}
    i = 2 if encoded[:2] == b"\xff\xd8" else len(encoded)
    while i + 4 <= len(encoded) and encoded[i] == 0xFF != encoded[i + 1] and _SCAN not in found:
        found[encoded[i + 1]] = i + 4
        i += 2 + int.from_bytes(encoded[i + 2 : i + 4], "big")
    return found
