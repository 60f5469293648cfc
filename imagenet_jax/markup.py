"""Text and pictures inside an HTML page."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from imagenet_jax.doctor.findings import printable

_THUMBNAIL = 192  # pixels
_SMALL = 64  # pixels; JPEG would blur a picture whose pixels are seen one by one


def escape(text: str) -> str:
    """`text` on one line, as an element or an attribute holds it."""
    return html.escape(printable(text))


def data_uri(pixels: np.ndarray) -> str:
    """u8[H, W] or u8[H, W, 3] -> the source of an <img>: JPEG, or PNG where it is small."""
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    if max(image.size) <= _SMALL:
        image.save(file, "PNG")
        kind = "png"
    else:
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        image.save(file, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """A table of plain text; the columns `numbers` stand right. The first cell heads its row."""
    right = set(numbers)
    mark = [' class="number"' if i in right else "" for i in range(len(head))]
    top = "".join(f'<th scope="col"{m}>{escape(h)}</th>' for h, m in zip(head, mark, strict=True))
    body = []
    for first, *rest in rows:
        cells = "".join(f"<td{m}>{escape(c)}</td>" for c, m in zip(rest, mark[1:], strict=True))
        body.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    lines = "".join(body)
    header = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table>{header}<tbody>{lines}</tbody></table></div>'
