"""Formats quantities with units, and escapes text and encodes images for HTML."""

import base64
import html
import io
from typing import TYPE_CHECKING

from imagenet_jax.errors import printable

if TYPE_CHECKING:
    import numpy as np

_DURATIONS = ((86400, "days"), (3600, "h"), (60, "min"))  # seconds
_BYTES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_FLOPS = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))

_THUMBNAIL_SIDE = 192  # pixels
_PNG_SIDE = 64  # pixels; JPEG would blur smaller images, which are shown pixel by pixel


def format_duration(seconds: float) -> str:
    """Return "41.0 s", "12.5 min", "3.2 h" or "4.2 days"."""
    for unit, name in _DURATIONS:
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{max(seconds, 0.0):.1f} s"


def format_bytes(count: float) -> str:
    """Return "512 bytes", "1.5 MiB" or "80.0 GiB"."""
    for unit, name in _BYTES:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count:.0f} bytes"


def format_flops(count: float) -> str:
    """Return floating-point operations as "4.09 GFLOP"."""
    for unit, name in _FLOPS:
        if count >= 0.9995 * unit:  # which prints as 1
            return f"{count / unit:.3g} {name}"
    return f"{count:,.0f} FLOP"


def counted(count: int, noun: str) -> str:
    """Return "1 image", "1,000 images", "2 classes"."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


class Html(str):
    """Text that is already HTML. `escape` does not change it."""


def escape(text: str) -> str:
    """Return `text` on one line, escaped for an HTML element or attribute."""
    return text if isinstance(text, Html) else html.escape(printable(text))


def data_uri(pixels: "np.ndarray") -> str:
    """Return the `src` of an <img> for u8[H, W] or u8[H, W, 3]: a PNG if it is small, or a JPEG."""
    from PIL import Image

    file = io.BytesIO()
    image = Image.fromarray(pixels)
    if max(image.size) <= _PNG_SIDE:
        image.save(file, "PNG")
        kind = "png"
    else:
        image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        image.save(file, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
