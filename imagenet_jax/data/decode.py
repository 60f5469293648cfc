"""Decoding and image geometry on the host: encoded bytes -> a crop u8[S, S, 3].

Training uses a random resized crop, and evaluation the center crop of the resized image, both as in
torchvision. `image_formats` decodes the formats that only Pillow reads.
"""

import math
import threading
from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg

from imagenet_jax.data import image_formats, resample
from imagenet_jax.data.image_formats import UndecodableImage

CROP_DRAWS = 22  # random numbers of a crop: 10 attempts with (area, ratio), then (y, x)

_OPENCV = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_KEPT_BYTES = 2**26  # larger buffers, for rare images above 22 megapixels, are not reused
_MCU = 16  # maximum height in pixels of a minimum coded unit of JPEG (4:2:0)
_memory = threading.local()

Range = tuple[float, float]

cv2.setNumThreads(1)  # the pipeline's own threads use all cores


def train_image(
    encoded: bytes,
    out: np.ndarray,
    uniforms: np.ndarray,
    *,
    scale: Range,
    ratio: Range,
    interpolation: str = "bilinear",
    resampling: str = "antialias",
) -> None:
    """Write a random resized crop of an image to `out`.

    Args:
      encoded: the image file.
      out: u8[S, S, 3].
      uniforms: f64[CROP_DRAWS] in [0, 1).
      scale, ratio: see `random_crop_box`.
      interpolation: "bilinear" | "bicubic".
      resampling: "antialias" (as Pillow) | "fast" (OpenCV, no low-pass filter). "fast" decodes a
        JPEG at 1/2, 1/4 or 1/8 of its size if the crop is still at least as large as `out`.

    Raises UndecodableImage.
    """
    header = image_formats.read_jpeg_header(encoded)
    if header:
        size = header.height, header.width
    else:
        image = _decode(encoded, _scratch)
        size = image.shape[0], image.shape[1]
    top, left, height, width = box = random_crop_box(*size, uniforms, scale, ratio)
    factor = 1
    if header:
        if resampling == "fast":
            factor = _reduction((height, width), out.shape[:2])
        image = _decode_top(encoded, size, top + height, factor)
    if resampling == "fast":
        top, left, height, width = (side // factor for side in box)
        crop = image[top : top + height, left : left + width]
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
    """Write the center crop of an image, resized to a shorter side of `resize` pixels, to `out`.

    Sizes and offsets round as in torchvision's Resize and CenterCrop. Raises UndecodableImage.
    """
    header = image_formats.read_jpeg_header(encoded) if resampling == "fast" else None
    if header:
        height, width, _ = header
        tall, wide = resized_size(height, width, resize)
        image = _decode(encoded, _scratch, _reduction((height, width), (tall, wide)))
    else:
        image = _decode(encoded, _scratch)
        height, width = image.shape[:2]
        tall, wide = resized_size(height, width, resize)
    side = out.shape[0]
    top, left = round((tall - side) / 2), round((wide - side) / 2)
    if resampling == "fast":
        # Resizing the shorter side of a very narrow image to `resize` makes the image huge.
        if tall * wide * image_formats.RESULT_BYTES > image_formats.MAX_BYTES:
            raise UndecodableImage(
                f"{width}x{height} pixels would be resized to {wide}x{tall}, which takes too much "
                "memory; use --config.data.resampling=antialias"
            )
        whole = cv2.resize(image, (wide, tall), interpolation=_OPENCV[interpolation])
        out[...] = whole[top : top + side, left : left + side]
    else:
        # Compute only the crop, from its box in the original and the pixels around the box.
        y, x = height / tall, width / wide
        box = (left * x, top * y, (left + side) * x, (top + side) * y)
        resample.resize(image, box, (0, 0, width, height), interpolation, out)


def resized_size(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Return (height, width) with a shorter side of `shorter`, rounded as torchvision's Resize."""
    if height <= width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter


def random_crop_box(
    height: int, width: int, uniforms: np.ndarray, scale: Range, ratio: Range
) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a random crop, as torchvision's RandomResizedCrop.

    The area of the crop is uniform in `scale` times the image's, and its aspect ratio (width /
    height) is log-uniform in `ratio`. If none of ten draws fits, the result is the largest central
    crop with an aspect ratio in `ratio` (Szegedy et al. 2015, arXiv:1409.4842, section 6).

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
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (height - h) // 2, (width - w) // 2, h, w


def decode(encoded: bytes) -> np.ndarray:
    """Return the RGB pixels u8[H, W, 3] of an image file. Raises UndecodableImage."""
    return _decode(encoded, lambda height, width: np.empty((height, width, 3), np.uint8))


def _reduction(size: tuple[int, int], least: tuple[int, ...]) -> int:
    """Return the largest of 8, 4, 2, 1 by which `size` can be divided and be at least `least`."""
    ratio = min(size[0] // least[0], size[1] // least[1])
    return next(factor for factor in (8, 4, 2, 1) if ratio >= factor or factor == 1)


def _decode(
    encoded: bytes, buffer: Callable[[int, int], np.ndarray], factor: int = 1
) -> np.ndarray:
    """Decode into `buffer(height, width)`, with sides divided by `factor` and rounded up."""
    header = image_formats.read_jpeg_header(encoded)
    if header and not header.is_cmyk:
        height, width, _ = header
        coefficients = 0 if image_formats.has_one_scan(encoded) else 6
        image_formats.check_memory(width, height, image_formats.RESULT_BYTES + coefficients)
        try:
            return _decode_jpeg(encoded, buffer(-(-height // factor), -(-width // factor)))
        except ValueError:
            pass  # Pillow knows which of libjpeg's warnings leave the pixels intact
    image = image_formats.decode_with_pillow(encoded, buffer)
    if factor == 1:
        return image
    size = -(-image.shape[1] // factor), -(-image.shape[0] // factor)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _decode_jpeg(encoded: bytes | bytearray, out: np.ndarray) -> np.ndarray:
    """Decode into `out` u8[H, W, 3], at the libjpeg scale that gives its size, and return it."""
    return simplejpeg.decode_jpeg(
        encoded, "RGB", buffer=out, min_height=out.shape[0], min_width=out.shape[1]
    )


def _decode_top(encoded: bytes, size: tuple[int, int], bottom: int, factor: int = 1) -> np.ndarray:
    """Return at least the first `bottom` rows of an image of `size`, shrunk by `factor`.

    On average, a seventh of the time would be spent on rows below the crop. libjpeg stops at the
    height in the header, so the header of a baseline JPEG is changed to a smaller height.
    """
    height, width = size
    rows = (bottom // _MCU + 1) * _MCU  # an extra row of units, because chroma is interpolated
    field = image_formats.find_height_field(encoded) if rows <= height - _MCU else None
    if field is None:
        return _decode(encoded, _scratch, factor)
    image_formats.check_memory(width, height, image_formats.RESULT_BYTES)
    shorter = bytearray(encoded)
    shorter[field : field + 2] = rows.to_bytes(2, "big")
    buffer = _scratch(rows // factor, -(-width // factor))
    try:
        return _decode_jpeg(shorter, buffer)
    except ValueError as e:
        # libjpeg reports the rows that were cut off; `_decode` handles any other damage.
        if "extraneous bytes before marker 0xd9" in str(e):
            return buffer
        return _decode(encoded, _scratch, factor)


def _scratch(height: int, width: int) -> np.ndarray:
    """Return this thread's buffer as u8[height, width, 3], valid until the thread decodes again.

    Reusing memory avoids the page faults of a new allocation.
    """
    size = height * width * 3
    if size > _KEPT_BYTES:
        return np.empty((height, width, 3), np.uint8)
    buffer = getattr(_memory, "buffer", None)
    if buffer is None or buffer.size < size:
        buffer = _memory.buffer = np.empty(size, np.uint8)
    return buffer[:size].reshape(height, width, 3)
