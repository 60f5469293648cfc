"""Text and images as HTML."""

import base64
import html
import io

import numpy as np
from PIL import Image

from imagenet_jax.errors import printable

_THUMBNAIL_SIDE = 192  # pixels
_PNG_SIDE = 64  # pixels; JPEG would blur small images, which are shown pixel by pixel


class Html(str):
    """Text that is HTML already; `escape` does not change it."""


def escape(text: str) -> str:
    """Return `text` on one line, escaped for an HTML element or attribute."""
    return text if isinstance(text, Html) else html.escape(printable(text))


def data_uri(pixels: np.ndarray) -> str:
    """Return the `src` of an <img> for u8[H, W] or u8[H, W, 3]: a PNG if small, else a JPEG."""
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
