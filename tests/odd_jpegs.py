"""JPEGs as few programs write them, with the pixels that they hold."""

import io

import numpy as np
import simplejpeg
from PIL import Image

_SOI = 2  # bytes


def encode(image, kind="JPEG", **options):
    """The bytes of an image file of this kind."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def whole(encoded):
    """u8[H, W, 3] by Pillow; None for what it refuses."""
    try:
        return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    except OSError:
        return None


def picture(width=72, height=120):
    """Smooth colors with some grain: no row and no column equals another."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), float)
    return Image.fromarray(np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype("uint8"))


def without_app0(encoded, instead=b""):
    """Without the JFIF segment, which is the first."""
    length = int.from_bytes(encoded[_SOI + 2 : _SOI + 4], "big")
    assert encoded[_SOI : _SOI + 2] == b"\xff\xe0"
    return encoded[:_SOI] + instead + encoded[_SOI + 2 + length :]


def short_adobe(encoded):
    """With an APP14 segment too short to hold what it promises: libjpeg reads it, Pillow fails."""
    return without_app0(encoded, b"\xff\xee\x00\x07Adobe")


def _patch(encoded, marker, offset, value):
    """With a byte of a segment changed; offset 0 is the marker's second byte."""
    at = encoded.index(b"\xff" + bytes([marker])) + 1 + offset
    return encoded[:at] + bytes([value]) + encoded[at + 1 :]


def _adobe(encoded, transform):
    at = encoded.index(b"Adobe") + 11
    return encoded[:at] + bytes([transform]) + encoded[at + 1 :]


def odd_jpegs():
    """Name -> (encoded, u8[H, W, 3] or None for a file that cannot be decoded)."""
    image = picture()
    plain, full = encode(image), encode(image, subsampling=0)
    cmyk, half = encode(image.convert("CMYK")), len(plain) // 2
    adobe, restarts = cmyk.index(b"Adobe") - 4, encode(image, restart_marker_rows=1)
    files = {
        "CMYK": cmyk,
        "CMYK, progressive": encode(image.convert("CMYK"), progressive=True),
        "CMYK without an Adobe marker": cmyk[:adobe] + cmyk[adobe + 16 :],
        "CMYK, unknown transform": _adobe(cmyk, 1),
        "YCCK": _adobe(cmyk, 2),
        "RGB": encode(image, keep_rgb=True),
        "grey": encode(image.convert("L")),
        "grey with sampling factors": _patch(encode(image.convert("L")), 0xC0, 10, 0x22),
        "progressive": encode(image, progressive=True),
        "progressive, grey": encode(image.convert("L"), progressive=True),
        "restart markers in rows": encode(image, restart_marker_blocks=2),
        "restart markers after rows": restarts,
        "arithmetic coding": _patch(full, 0xC0, 0, 0xC9),  # noise, but the same to everyone
        "extended": _patch(full, 0xC0, 0, 0xC1),
        "12 bits": _patch(full, 0xC0, 3, 12),
        "no height": _patch(_patch(full, 0xC0, 4, 0), 0xC0, 5, 0),
        "4:4:1": _patch(full, 0xC0, 10, 0x14),
        "4:1:0": _patch(full, 0xC0, 10, 0x42),
        "no JFIF": without_app0(plain),
        "fill bytes": plain[:_SOI] + b"\xff\xff" + plain[_SOI:],
        "preview in EXIF": encode(image, exif=b"Exif\0\0" + encode(image.resize((16, 16)))),
        "comment like a header": encode(image, comment=b"\xff\xc0\x00\x11\x08\x00\x10\x00\x10\x03"),
        "bytes behind the end": plain + b"junk" * 20,
        "a JPEG behind the end": plain + encode(image.resize((16, 16))),
        "bytes before the end": plain[:-2] + b"junk" * 20 + plain[-2:],
        "bytes lost": plain[:half] + plain[half + 40 :],
        "bytes lost with restart markers": restarts[:half] + b"\xff\xd9",
        "ends early": plain[:half],
        "ends early with an end marker": plain[:half] + b"\xff\xd9",
        "CMYK, ends early": cmyk[: len(cmyk) // 2],
        "no end marker": plain[:-2],
        "short Adobe segment": short_adobe(plain),
    }  # fmt: skip
    pixels = np.asarray(image)
    for subsampling in ("444", "422", "420", "440", "411"):
        name = ":".join(subsampling)
        files[name] = simplejpeg.encode_jpeg(pixels, colorsubsampling=subsampling)
    found = {name: (data, whole(data)) for name, data in files.items()}
    found["short Adobe segment"] = (files["short Adobe segment"], whole(plain))
    return found


def odd_metadata():
    """Name -> an image whose pixels are whole and of which Pillow prints something."""
    image = picture()
    jpeg, tiff = encode(image), io.BytesIO()
    image.save(tiff, "TIFF")
    entry = tiff.getvalue().index(b"\x03\x01\x03\x00\x01\x00")  # compression: one number
    two = tiff.getvalue()[: entry + 4] + b"\x02" + tiff.getvalue()[entry + 5 :]
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x01\0\0\0"
    return {
        "half of EXIF": encode(image, exif=exif),
        "no frames": jpeg[:_SOI] + b"\xff\xe2\x00\x0cMPF\0" + bytes(6) + jpeg[_SOI:],
        "a tag twice": two,
    }
