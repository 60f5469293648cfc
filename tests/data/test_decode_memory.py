"""The memory of decoding, as the kernel counts it, against what the code takes it for."""

import os
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).parents[2]  # of conftest, whose import takes seconds
SIDE = 1280
BEFORE_THE_END = b"junk" * 20 + b"\xff\xd9"
SLACK = 4e6  # bytes: buffers of constant size, the file, the pages of libraries


def _encode(image, kind, **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _png(depth, color, channels, interlaced):
    """Black, of kinds that Pillow reads and does not write."""

    def chunk(name, data):
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    step = [(8, 8), (8, 8), (4, 8), (4, 4), (2, 4), (2, 2), (1, 2)] if interlaced else [(1, 1)]
    rows = b"".join(
        bytes((1 + (SIDE // x * channels * depth + 7) // 8) * (SIDE // y)) for x, y in step
    )
    header = struct.pack(">IIBBBBB", SIDE, SIDE, depth, color, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _files():
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    rgb = coarse.resize((SIDE, SIDE), Image.Resampling.NEAREST)
    rgba, frames = rgb.convert("RGBA"), {"save_all": True, "append_images": [rgb.rotate(90)]}
    strip = {"strip_size": SIDE * SIDE * 8}
    for depth, color, channels in ((1, 0, 1), (16, 0, 1), (8, 2, 3), (16, 2, 3), (16, 6, 4)):
        for interlaced in (0, 1):
            name = f"PNG {depth} bits, {channels} channels, interlaced {interlaced}"
            yield name, _png(depth, color, channels, interlaced)
    yield "PNG, palette", _encode(rgb.quantize(16), "PNG", compress_level=1)
    yield "PNG, animated", _encode(rgb, "PNG", compress_level=1, **frames)
    yield "GIF, animated", _encode(rgb.quantize(16), "GIF", **frames)
    yield "BMP", _encode(rgb, "BMP")
    yield "WebP", _encode(rgb, "WEBP", method=0)
    yield "WebP, animated", _encode(rgba, "WEBP", method=0, **frames)
    yield "TIFF in a strip", _encode(rgb, "TIFF", compression="tiff_lzw", **strip)
    yield "TIFF, 32 bits", _encode(rgb.convert("F"), "TIFF", compression="tiff_lzw", **strip)
    yield "PPM", _encode(rgb, "PPM")
    for kind, mode in (("gray", "L"), ("color", "RGB"), ("CMYK", "CMYK")):
        for progressive in (False, True):
            encoded = _encode(rgb.convert(mode), "JPEG", subsampling=0, progressive=progressive)
            name = f"JPEG, {kind}, progressive {progressive}"
            yield name, encoded
            yield f"{name}, by Pillow", encoded[:-2] + BEFORE_THE_END
    yield "JPEG 2000", _encode(rgba, "JPEG2000")  # last: its decoder's memory is kept for reuse


def _status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def _run():
    """In a process of its own, whose allocator gives memory back at once."""
    from imagenet_jax.data import decode, image_formats

    claimed, check = [], image_formats.check_memory

    def record(width, height, bytes_per_pixel):
        claimed.append(width * height * bytes_per_pixel)
        check(width, height, bytes_per_pixel)

    image_formats.check_memory, decode._KEPT_BYTES = record, 0
    out = np.zeros((64, 64, 3), np.uint8)
    small = _encode(Image.new("RGB", (9, 9)), "PNG")
    decode.eval_image(small, out, resize=64)  # compiles, and loads Pillow's plugins
    for name, encoded in _files():
        claimed.clear()
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        decode.eval_image(encoded, out, resize=64)
        peak = _status("VmHWM") - before
        print(f"{name}: {peak / SIDE**2:.1f} of {max(claimed) / SIDE**2:.1f} bytes per pixel")
        assert peak <= max(claimed) + SLACK, name
        assert max(claimed) < 4 * peak, name


def test_memory_is_within_what_is_checked():
    done = subprocess.run(
        [sys.executable, "-P", __file__], cwd=REPOSITORY, capture_output=True, text=True,
        timeout=300,
        env=os.environ | {
            "PYTHONPATH": str(REPOSITORY),
            "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.count("bytes per pixel") > 30


if __name__ == "__main__":
    _run()
