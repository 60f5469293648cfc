"""Geometry on the host: encoded bytes to u8[S, S, 3], in a buffer that the caller gives.

Any file becomes RGB as Pillow's `convert("RGB")` makes it, which is what torchvision trains on:
gray is repeated, CMYK converted, palettes looked up, alpha dropped. Of an animation, the first
frame is used. 16-bit gray is scaled to 8 bits (32-bit gray is clipped to 16 before). EXIF rotation
is not applied, in keeping with torchvision's and tfds's ImageNet.
"""

import functools
import io
import logging
import math
import threading
import warnings
from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from imagenet_jax.data import jpeg_header, resample
from imagenet_jax.errors import UserError, one_line

MAX_BYTES = 2**30  # memory to decode and resample one image, besides its file
CROP_DRAWS = 22  # uniforms that one random crop may use: 10 tries of (area, ratio), then (y, x)

_OPENCV = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}

_KEPT_BYTES = 2**26  # a larger buffer, of a rare 22-megapixel image, is given back

# Bytes per pixel: the RGB result and a copy of it to resample; an image in Pillow by its mode (4
# for any other); what Pillow's decoder of a format takes besides, for the costliest file.
_RESULT_BYTES = 6
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
_FORMAT_BYTES = {
    "JPEG": 8, "MPO": 8, "PNG": 0, "GIF": 8, "BMP": 8, "TIFF": 8, "PPM": 8, "WEBP": 12,
    "AVIF": 24, "JPEG2000": 24,
}  # fmt: skip
_BAND_PIXELS = 2**18  # go from Pillow to NumPy at a time: they take 10 bytes each on the way

_MCU = 16  # rows of pixels that a JPEG codes together, at most (4:2:0)
_memory = threading.local()

cv2.setNumThreads(1)  # the pipeline's threads are enough; OpenCV's own would fight with them


def _silence_pillow() -> None:
    """Print neither Pillow's warnings nor its log: they do not name the image.

    They are about metadata and transparency, on which the RGB pixels do not depend, and about large
    images, which MAX_BYTES refuses. The doctor reports those about metadata.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


_silence_pillow()


class UndecodableImage(UserError):
    """Bytes that are no image, a damaged one, or one too large."""


def decode(encoded: bytes) -> np.ndarray:
    """u8[H, W, 3], RGB. Raises UndecodableImage."""
    return _decode(encoded, lambda height, width: np.empty((height, width, 3), np.uint8))


def _decode(encoded: bytes, buffer: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """`decode` into `buffer(height, width)`."""
    header = jpeg_header.read(encoded)
    if header and not header.is_cmyk:
        height, width, _ = header
        kept = 0 if jpeg_header.has_one_scan(encoded) else 6
        _check_memory(width, height, _RESULT_BYTES + kept)
        try:
            return simplejpeg.decode_jpeg(encoded, "RGB", buffer=buffer(height, width))
        except ValueError:
            pass  # Pillow is more forgiving: it knows which warnings leave the pixels whole
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
        except Exception as e:  # Pillow's plugins raise whatever a damaged file makes them raise
            raise UndecodableImage(_reason(e)) from e
    return pixels


def open_image(encoded: bytes) -> Image.Image:
    """Open an image with Pillow, without decoding it.

    Raises UndecodableImage, also for an image that would take more than MAX_BYTES to decode.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=_formats())
    except UnidentifiedImageError as e:
        what = f"starts with {encoded[:12]!r}" if encoded else "is empty"
        raise UndecodableImage(
            f"not an image in a known format, or its header is damaged: the file {what}"
        ) from e
    except Exception as e:
        raise UndecodableImage(_reason(e)) from e
    extra = 0 if jpeg_header.has_one_scan(encoded) else _FORMAT_BYTES[str(image.format)]
    _check_memory(*image.size, _RESULT_BYTES + _MODE_BYTES.get(image.mode, 4) + extra)
    return image


@functools.cache
def _formats() -> list[str]:
    """Formats whose memory is known. Pillow has more, EPS among them, which runs Ghostscript."""
    Image.init()
    return [name for name in _FORMAT_BYTES if name in Image.OPEN]


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _check_memory(width: int, height: int, bytes_per_pixel: int) -> None:
    needed = width * height * bytes_per_pixel
    if needed > MAX_BYTES:
        raise UndecodableImage(
            f"{width}x{height} pixels take up to {needed / 1e6:,.0f} MB of memory to decode, more "
            f"than the {MAX_BYTES / 1e6:,.0f} MB that one image may take; shrink the image"
        )


def _decode_top(encoded: bytes, size: tuple[int, int], bottom: int) -> np.ndarray:
    """At least the first `bottom` rows of an image of (height, width) `size`, as `decode` would.

    Rows below the crop are a seventh of the work on average. libjpeg stops where the header says
    that the image ends, so a baseline JPEG is given a header that says it earlier.
    """
    height, width = size
    rows = (bottom // _MCU + 1) * _MCU  # one row of blocks more than needed: chroma is interpolated
    at = jpeg_header.height_field(encoded) if rows <= height - _MCU else None
    if at is None:
        return _decode(encoded, _scratch)
    _check_memory(width, height, _RESULT_BYTES)
    shorter = bytearray(encoded)
    shorter[at : at + 2] = rows.to_bytes(2, "big")
    buffer = _scratch(rows, width)
    try:
        return simplejpeg.decode_jpeg(shorter, "RGB", buffer=buffer)
    except ValueError as e:
        # The rows left out are reported; anything else is for `decode` to judge.
        if "extraneous bytes before marker 0xd9" in str(e):
            return buffer
        return _decode(encoded, _scratch)


def _scratch(height: int, width: int) -> np.ndarray:
    """This thread's buffer, as u8[height, width, 3]: fresh memory would cost its page faults.

    Its pixels are valid until the thread decodes again.
    """
    size = height * width * 3
    if size > _KEPT_BYTES:
        return np.empty((height, width, 3), np.uint8)
    buffer = getattr(_memory, "buffer", None)
    if buffer is None or buffer.size < size:
        buffer = _memory.buffer = np.empty(size, np.uint8)
    return buffer[:size].reshape(height, width, 3)


def is_cmyk(encoded: bytes) -> bool:
    """Whether a file that `decode` reads is a CMYK or YCCK JPEG."""
    header = jpeg_header.read(encoded)
    if header:
        return header.is_cmyk
    with open_image(encoded) as image:
        return image.mode == "CMYK"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        gray = np.clip(np.asarray(image).astype(np.int32), 0, 65535)
        return Image.fromarray((gray // 257).astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def random_crop_box(
    height: int,
    width: int,
    uniforms: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop: torchvision's RandomResizedCrop.

    The area is uniform in `scale` of the image's, the aspect (width over height) log-uniform in
    `ratio`; after ten draws that do not fit, the largest central crop within `ratio` (Szegedy et
    al. 2015, arXiv:1409.4842, section 6).

    Args:
      uniforms: f64[CROP_DRAWS] in [0, 1).
    """
    u = uniforms.tolist()
    area = height * width
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for i in range(10):
        target = area * (scale[0] + (scale[1] - scale[0]) * u[2 * i])
        aspect = math.exp(low + (high - low) * u[2 * i + 1])
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(u[20] * (height - h + 1)), int(u[21] * (width - w + 1)), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def train_image(
    encoded: bytes,
    out: np.ndarray,
    uniforms: np.ndarray,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    interpolation: str = "bilinear",
    resampling: str = "antialias",
) -> None:
    """Write a random resized crop to out, u8[S, S, 3]. Raises UndecodableImage."""
    header = jpeg_header.read(encoded)
    if header:
        size = header.height, header.width
        top, left, height, width = random_crop_box(*size, uniforms, scale, ratio)
        image = _decode_top(encoded, size, top + height)
    else:
        image = _decode(encoded, _scratch)
        rows, columns = image.shape[:2]
        top, left, height, width = random_crop_box(rows, columns, uniforms, scale, ratio)
    crop = image[top : top + height, left : left + width]
    if resampling == "fast":
        cv2.resize(crop, out.shape[1::-1], dst=out, interpolation=_OPENCV[interpolation])
    else:
        box = (left, top, left + width, top + height)
        resample.resize(image, box, box, interpolation, out)


def eval_image(
    encoded: bytes,
    out: np.ndarray,
    *,
    resize: int,
    interpolation: str = "bilinear",
    resampling: str = "antialias",
) -> None:
    """Write the center crop of the image resized to `resize` on its shorter side to out.

    Sizes and offsets round as torchvision's Resize and CenterCrop do. Raises UndecodableImage.
    """
    image = _decode(encoded, _scratch)
    height, width = image.shape[:2]
    if height <= width:
        tall, wide = resize, int(resize * width / height)
    else:
        tall, wide = int(resize * height / width), resize
    side = out.shape[0]
    top, left = round((tall - side) / 2), round((wide - side) / 2)
    if resampling == "fast":
        # A line of pixels is enlarged a lot until it is `resize` thick.
        if tall * wide * _RESULT_BYTES > MAX_BYTES:
            raise UndecodableImage(
                f"{width}x{height} pixels would be resized to {wide}x{tall}, which takes too much "
                "memory; use --config.data.resampling=antialias"
            )
        whole = cv2.resize(image, (wide, tall), interpolation=_OPENCV[interpolation])
        out[...] = whole[top : top + side, left : left + side]
    else:
        # Only the crop is resampled: its box in the original, with the original's pixels around.
        y, x = height / tall, width / wide
        box = (left * x, top * y, (left + side) * x, (top + side) * y)
        resample.resize(image, box, (0, 0, width, height), interpolation, out)
