"""Odd JPEGs, odd metadata and damaged headers: the right pixels, or one line that says why not."""

import io
import warnings

import numpy as np
import odd_jpegs
import pytest
from odd_jpegs import encode
from PIL import Image

from imagenet_jax.data import decode, image_formats
from imagenet_jax.data.sampler import record_uniforms

ODD = odd_jpegs.odd_jpegs()


def _uniforms(seed):
    return record_uniforms(seed, *np.zeros((3, 1), int), decode.CROP_DRAWS)[0]


@pytest.fixture
def poisoned(monkeypatch):
    """A scratch buffer full of what no image has left there."""
    scratch = decode._scratch

    def poison(height, width):
        buffer = scratch(height, width)
        buffer[...] = 0xA5
        return buffer

    monkeypatch.setattr(decode, "_scratch", poison)


@pytest.mark.parametrize("kind", ODD)
def test_each_crop_of_an_odd_jpeg_is_that_of_its_whole_image(poisoned, kind):
    """The whole image is Pillow's, stored as PNG; crops end above, in and at the last blocks."""
    encoded, whole = ODD[kind]
    height, width = (120, 72) if whole is None else whole.shape[:2]
    png = None if whole is None else encode(Image.fromarray(whole), "PNG")
    got, want = np.zeros((2, 24, 24, 3), np.uint8)
    crop, stopped = {"scale": (0.02, 0.5), "ratio": (3 / 4, 4 / 3)}, 0
    for seed in range(16):
        top, _, tall, _ = decode.random_crop_box(height, width, _uniforms(seed), **crop)
        stopped += (top + tall) // 16 * 16 + 16 <= height - 16
        if png is None:
            with pytest.raises(decode.UndecodableImage):
                decode.train_image(encoded, got, _uniforms(seed), **crop)
        else:
            decode.train_image(encoded, got, _uniforms(seed), **crop)
            decode.train_image(png, want, _uniforms(seed), **crop)
            np.testing.assert_array_equal(got, want)
    assert stopped > 3 and (whole is None or (decode.decode(encoded) == whole).all())


def test_odd_jpegs_are_of_both_kinds():
    refused = {kind for kind, (_, whole) in ODD.items() if whole is None}
    assert refused == {"12 bits", "no height", "ends early", "CMYK, ends early", "no end marker"}


def test_a_cmyk_image_after_another_one():
    out = np.zeros((8, 8, 3), np.uint8)
    decode.decode(encode(Image.new("RGB", (64, 96), (0, 255, 0))))
    encoded = encode(Image.new("RGB", (64, 96), (200, 60, 30)).convert("CMYK"))
    for seed in range(20):
        decode.train_image(encoded, out, _uniforms(seed), scale=(0.08, 1), ratio=(0.75, 1.33))
        assert np.abs(out.astype(int) - (200, 60, 30)).max() <= 3


@pytest.mark.parametrize("kind", odd_jpegs.odd_metadata())
def test_odd_metadata_is_not_printed(kind, caplog):
    encoded = odd_jpegs.odd_metadata()[kind]
    palette = Image.new("P", (8, 8))
    clear = encode(palette, "PNG", transparency=bytes(range(16)))
    samples = odd_jpegs.odd_metadata()["a tag twice"].replace(
        b"\x15\x01\x03\x00\x01\x00\x00\x00\x03", b"\x15\x01\x03\x00\x01\x00\x00\x00\x63"
    )
    with warnings.catch_warnings(record=True) as printed:
        warnings.resetwarnings()
        with Image.open(io.BytesIO(encoded)) as image:
            image.getexif()
        assert printed  # so far
        printed.clear()
        image_formats._silence_pillow()
        decode.decode(encoded)
        decode.decode(clear)
        with pytest.raises(decode.UndecodableImage):
            decode.decode(samples)
    assert not printed and not caplog.records


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_messages_say_what_the_file_is(kind):
    """Damaged headers: one line without the names of Python's objects."""
    image_formats._silence_pillow()  # as at import, before pytest collects warnings
    encoded = encode(odd_jpegs.picture(), kind)
    rng, seen = np.random.default_rng(0), set()
    for _ in range(60):
        damaged = bytearray(encoded)
        for at in rng.integers(0, 200, 6):
            damaged[at] = rng.integers(256)
        try:
            decode.decode(bytes(damaged))
        except decode.UndecodableImage as e:
            assert len(str(e).splitlines()) == 1 and " object at 0x" not in str(e)
            seen.add(str(e))
    assert seen


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>", r"the file starts with b'<!DOCTYPE ht'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a known format"),
        (ODD["no height"][0], "its header is damaged"),
    ],
)
def test_what_is_no_image_is_told_by_its_first_bytes(data, message):
    with pytest.raises(decode.UndecodableImage, match=message):
        decode.decode(data)
