"""Geometry on the host: encoded bytes to u8[S, S, 3], in a buffer that the caller gives.

Any file becomes RGB as Pillow's `convert("RGB")` makes it, which is what torchvision trains on:
grey is repeated, CMYK converted, palettes looked up, alpha dropped, of an animation the first frame
taken. 16-bit grey is scaled to 8 bits (32-bit grey is clipped to 16 before). EXIF rotation is not
applied, in keeping with torchvision's and tfds's ImageNet.
"""

import io
import math
import threading
import warnings

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from imagenet_jax.data import resample
from imagenet_jax.errors import UserError

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs, about 0.5 GB of RGB
CROP_DRAWS = 22  # uniforms that one random crop may use: 10 tries of (area, ratio), then (y, x)

_OPENCV = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}

_KEPT_BYTES = 2**26  # a larger buffer, of a rare 22-megapixel image, is given back

_MCU = 16  # rows of pixels that a JPEG codes together, at most (4:2:0)
_memory = threading.local()

cv2.setNumThreads(1)  # the pipeline's threads are enough; OpenCV's own would fight with them
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS decides


class UndecodableImage(UserError):
    """Bytes that are no image, a damaged one, or one too large."""


def decode(encoded: bytes) -> np.ndarray:
    """u8[H, W, 3], RGB. Raises UndecodableImage."""
    return np.array(_decode(encoded))


def _decode(encoded: bytes) -> np.ndarray:
    """`decode` into this thread's buffer: valid until the thread decodes again."""
    if encoded[:2] == b"\xff\xd8":
        try:
            height, width, colour, _ = simplejpeg.decode_jpeg_header(encoded)
            if colour not in ("CMYK", "YCCK") and height * width <= MAX_PIXELS:
                return simplejpeg.decode_jpeg(encoded, "RGB", buffer=_scratch(height, width))
        except ValueError:
            pass  # Pillow is more forgiving: it knows which warnings leave the pixels whole
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UndecodableImage(
                    f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,} are refused"
                )
            return np.asarray(_to_rgb(image))
    except UndecodableImage:
        raise
    except Exception as e:  # Pillow's plugins raise whatever a damaged file makes them raise
        raise UndecodableImage(f"{type(e).__name__}: {' '.join(str(e).split())}") from e


def _decode_top(encoded: bytes, size: tuple[int, int], bottom: int) -> np.ndarray:
    """At least the first `bottom` rows of an image of (height, width) `size`, as `decode` would.

    Rows below the crop are a seventh of the work on average. libjpeg stops where the header says
    that the image ends, so a baseline JPEG is given a header that says it earlier.
    """
    height, width = size
    rows = (bottom // _MCU + 1) * _MCU  # one row of blocks more than needed: chroma is interpolated
    at = _height_field(encoded) if rows <= height - _MCU else None
    if at is None:
        return _decode(encoded)
    shorter = bytearray(encoded)
    shorter[at : at + 2] = rows.to_bytes(2, "big")
    buffer = _scratch(rows, width)
    try:
        return simplejpeg.decode_jpeg(shorter, "RGB", buffer=buffer)
    except ValueError as e:
        # The rows left out are reported; anything else is for `decode` to judge.
        if "extraneous bytes before marker 0xd9" in str(e):
            return buffer
        return _decode(encoded)


def _height_field(encoded: bytes) -> int | None:
    """Where a JPEG's header has its height, if its rows are coded in one pass from the top."""
    at, found = 2, None
    while at + 4 < len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker == 0xC0:  # start of frame, baseline
            found, components = at + 5, encoded[at + 9]
        elif marker == 0xDA:  # start of scan
            return found if found and encoded[at + 4] == components else None
        at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return None


def _scratch(height: int, width: int) -> np.ndarray:
    """This thread's buffer, as u8[height, width, 3]: fresh memory would cost its page faults."""
    size = height * width * 3
    if size > _KEPT_BYTES:
        return np.empty((height, width, 3), np.uint8)
    buffer = getattr(_memory, "buffer", None)
    if buffer is None or buffer.size < size:
        buffer = _memory.buffer = np.empty(size, np.uint8)
    return buffer[:size].reshape(height, width, 3)


def image_size(encoded: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG from its header; None for what `decode` has to look at."""
    try:
        return simplejpeg.decode_jpeg_header(encoded)[:2] if encoded[:2] == b"\xff\xd8" else None
    except ValueError:
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray((grey // 257).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


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
    size = image_size(encoded)
    if size and size[0] * size[1] <= MAX_PIXELS:
        top, left, height, width = random_crop_box(*size, uniforms, scale, ratio)
        image = _decode_top(encoded, size, top + height)
    else:
        image = _decode(encoded)
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
    """Write the centre crop of the image resized to `resize` on its shorter side to out.

    Sizes and offsets round as torchvision's Resize and CenterCrop do. Raises UndecodableImage.
    """
    image = _decode(encoded)
    height, width = image.shape[:2]
    if height <= width:
        tall, wide = resize, int(resize * width / height)
    else:
        tall, wide = int(resize * height / width), resize
    side = out.shape[0]
    top, left = round((tall - side) / 2), round((wide - side) / 2)
    if resampling == "fast":
        if tall * wide > MAX_PIXELS:  # a line of pixels, enlarged until it is `resize` thick
            raise UndecodableImage(f"{width}x{height} pixels would be resized to {wide}x{tall}")
        whole = cv2.resize(image, (wide, tall), interpolation=_OPENCV[interpolation])
        out[...] = whole[top : top + side, left : left + side]
    else:
        # Only the crop is resampled: its box in the original, with the original's pixels around.
        y, x = height / tall, width / wide
        box = (left * x, top * y, (left + side) * x, (top + side) * y)
        resample.resize(image, box, (0, 0, width, height), interpolation, out)
