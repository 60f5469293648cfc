"""What there is to say about one encoded image, without a data set around it."""

import hashlib
import warnings
from pathlib import PurePosixPath
from typing import NamedTuple

from PIL import Image

from imagenet_jax.data.decode import UndecodableImage, decode, open_image
from imagenet_jax.errors import one_line

TINY = 32  # pixels; ImageNet's crops come out blurred from anything smaller
HASH_BYTES = 16  # of SHA-256: no two of a billion images collide by chance

_ORIENTATION = 0x0112
_FORMATS = {
    ".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP",
    ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip


class Facts(NamedTuple):
    """About one image.

    Attributes:
      digest: HASH_BYTES bytes, of the encoded bytes.
      size: bytes.
      height: pixels; 0 where it cannot be decoded.
      width: pixels; 0 where it cannot be decoded.
      format: such as "JPEG RGB"; "?" where the header says nothing.
      findings: (kind, detail), see `findings`.
    """

    digest: bytes
    size: int
    height: int
    width: int
    format: str
    findings: tuple[tuple[str, str], ...]


def inspect(encoded: bytes, name: str) -> Facts:
    """The facts of an image that is called `name` (its suffix counts). Never raises."""
    digest = hashlib.sha256(encoded).digest()[:HASH_BYTES]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")  # which `decode` silences
        try:
            with open_image(encoded) as image:
                kind, findings = _of_header(image, encoded, PurePosixPath(name).suffix.lower())
        except Exception:  # Pillow's plugins raise anything; what counts is if `decode` manages
            kind, findings = "?", []
    about = dict.fromkeys(str(w.message) for w in warned if issubclass(w.category, UserWarning))
    if about:
        findings.append(("odd_metadata", one_line("; ".join(about), length=None)))
    try:
        height, width = decode(encoded).shape[:2]
    except Exception as e:
        what = str(e) if isinstance(e, UndecodableImage) else f"{type(e).__name__}: {e}"
        damage = "truncated" if encoded and _ends_early(encoded) else "unreadable"
        return Facts(digest, len(encoded), 0, 0, kind, ((damage, one_line(what, length=None)),))
    if min(height, width) < TINY:
        findings.append(("tiny", f"{width}x{height} pixels"))
    if _ends_early(encoded):
        findings.append(("unterminated", ""))
    return Facts(digest, len(encoded), height, width, kind, tuple(findings))


def _of_header(
    image: Image.Image, encoded: bytes, suffix: str
) -> tuple[str, list[tuple[str, str]]]:
    """("JPEG RGB", findings) of an image that is open and not yet decoded."""
    # A camera's JPEG with a preview behind it: to training it is a JPEG.
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    findings = []
    if image.mode == "CMYK":
        findings.append(("cmyk", ""))
    # Pillow's mode does not tell of 16-bit colour in a PNG; its header's depth does.
    if image.mode == "I" or image.mode.startswith("I;16") or (kind == "PNG" and encoded[24] == 16):
        findings.append(("sixteen_bit", ""))
    if kind != "JPEG" and getattr(image, "is_animated", False):
        findings.append(("animated", f"{getattr(image, 'n_frames', '?')} frames"))
    if image.has_transparency_data:
        findings.append(("alpha", image.mode))
    if suffix in _FORMATS and _FORMATS[suffix] != kind:
        findings.append(("misnamed", f"holds {kind}"))
    orientation = _orientation(image, encoded)
    if orientation != 1:
        findings.append(("exif_rotated", f"orientation {orientation}"))
    return f"{kind} {image.mode}", findings


def _orientation(image: Image.Image, encoded: bytes) -> int:
    """The EXIF orientation, 1 to 8; 1 is upright."""
    if image.format == "PNG" and b"eXIf" not in encoded:
        return 1  # Pillow would decode all of it to find out
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata; the pixels may be fine
        return 1
    return value if value in range(1, 9) else 1


def _ends_early(encoded: bytes) -> bool:
    """Whether the file lacks its end by the rules of its format."""
    if encoded[:2] == b"\xff\xd8":  # a mark of the end after the last start of a scan
        scan = encoded.rfind(b"\xff\xda")
        return scan < 0 or encoded.find(b"\xff\xd9", scan) < 0
    if encoded[:4] == b"\x89PNG":
        return b"IEND" not in encoded[-4096:]
    if encoded[:4] == b"RIFF":
        return len(encoded) < 8 + int.from_bytes(encoded[4:8], "little")
    if encoded[:4] == b"GIF8":
        return b";" not in encoded[-16:]
    if encoded[:2] == b"BM":
        return len(encoded) < int.from_bytes(encoded[2:6], "little")
    return False
