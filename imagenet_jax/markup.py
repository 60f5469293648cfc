"""Text that is safe to print, and text, images and tables as HTML."""

import base64
import html
import io
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

_ESCAPED = ("Cc", "Cs", "Zl", "Zp")  # control characters, surrogates, line separators
_THUMBNAIL_SIDE = 192  # pixels
_PNG_SIDE = 64  # pixels; JPEG would blur small images, which are shown pixel by pixel


def printable(text: str) -> str:
    """Return `text` on one line, with control characters and invalid UTF-8 escaped."""
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _ESCAPED else c
        for c in text
    )


def escape(text: str) -> str:
    """Return `text` on one line, escaped for an HTML element or attribute."""
    return html.escape(printable(text))


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


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """Return an HTML table of plain text; the first cell of a row is its header.

    Args:
      head: column names. No header row is written if all are empty.
      numbers: indices of the right-aligned columns.
    """
    right = set(numbers)
    mark = [' class="number"' if i in right else "" for i in range(len(head))]
    top = "".join(f'<th scope="col"{m}>{escape(h)}</th>' for h, m in zip(head, mark, strict=True))
    body = []
    for first, *rest in rows:
        cells = "".join(f"<td{m}>{escape(c)}</td>" for c, m in zip(rest, mark[1:], strict=True))
        body.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    header = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table>{header}<tbody>{"".join(body)}</tbody></table></div>'
