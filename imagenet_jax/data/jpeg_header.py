"""What the header of a JPEG says: size, colors, and whether the file can be decoded in part."""

from typing import NamedTuple

import simplejpeg

_BASELINE, _SEQUENTIAL, _RESTARTS, _SCAN = 0xC0, (0xC0, 0xC1, 0xC9), 0xDD, 0xDA  # markers


class Header(NamedTuple):
    """Size in pixels and whether there are four components, CMYK or YCCK."""

    height: int
    width: int
    is_cmyk: bool


def read(encoded: bytes) -> Header | None:
    """The header of a JPEG that simplejpeg knows; None for anything else."""
    if encoded[:2] != b"\xff\xd8":
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(encoded)
    except (ValueError, KeyError):  # KeyError: subsampling that has no name there, such as 4:4:1
        return None
    return Header(height, width, colors in ("CMYK", "YCCK"))


def height_field(encoded: bytes) -> int | None:
    """The offset of the height, if simplejpeg can be asked for fewer rows; else None.

    It can if the rows are coded in one pass from the top, and without restart markers: a missing
    one is an error of its own. Four components are excluded, because simplejpeg converts them to
    RGB after libjpeg is done, and not at all if libjpeg reports the rows left out.
    """
    found = _segments(encoded)
    frame, restarts = found.get(_BASELINE), found.get(_RESTARTS)
    if frame is None or encoded[frame + 5 : frame + 6] not in (b"\1", b"\3"):
        return None
    if restarts is not None and any(encoded[restarts : restarts + 2]):
        return None
    return frame + 1 if has_one_scan(encoded) else None


def has_one_scan(encoded: bytes) -> bool:
    """Whether it is a JPEG whose first scan has all components, so that there is no second one.

    libjpeg keeps the coefficients of all others, two bytes for each component of a pixel.
    """
    found = _segments(encoded)
    frame = next((found[marker] for marker in _SEQUENTIAL if marker in found), None)
    if frame is None or _SCAN not in found:
        return False
    return encoded[frame + 5 : frame + 6] == encoded[found[_SCAN] : found[_SCAN] + 1]


def _segments(encoded: bytes) -> dict[int, int]:
    """Marker -> offset of its data, of a JPEG up to its first scan."""
    found: dict[int, int] = {}
    at = 2 if encoded[:2] == b"\xff\xd8" else len(encoded)
    while at + 4 <= len(encoded) and encoded[at] == 0xFF != encoded[at + 1] and _SCAN not in found:
        found[encoded[at + 1]] = at + 4
        at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return found
