"""Formats of images against Pillow; files that are too large, damaged or no images."""

import io

import numpy as np
import pytest
from odd_jpegs import encode
from PIL import Image

from imagenet_jax.data import decode, image_formats
from imagenet_jax.data.sampler import record_uniforms

OUT = np.zeros((32, 32, 3), np.uint8)


def _modes():
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).resize((60, 40))
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(rng.integers(0, 256, (40, 60), dtype=np.uint8)))
    return {
        "grey JPEG": encode(rgb.convert("L")),
        "CMYK JPEG": encode(rgb.convert("CMYK")),
        "progressive JPEG": encode(rgb, progressive=True),
        "4:4:4 JPEG": encode(rgb, subsampling=0, quality=95),
        "palette PNG": encode(rgb.quantize(32), "PNG"),
        "RGBA PNG": encode(alpha, "PNG"),
        "grey and alpha PNG": encode(alpha.convert("LA"), "PNG"),
        "1-bit PNG": encode(rgb.convert("1"), "PNG"),
        "WebP": encode(rgb, "WEBP", lossless=True),
        "BMP": encode(rgb, "BMP"),
        "PNG in a .JPEG": encode(rgb, "PNG"),
    }


@pytest.mark.parametrize("kind", list(_modes()))
def test_every_format_is_what_pillow_makes_of_it(kind):
    encoded = _modes()[kind]
    want = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    got = decode.decode(encoded)
    assert got.shape == want.shape and got.dtype == np.uint8
    assert np.mean(np.abs(got.astype(int) - want.astype(int)) <= 1) >= 0.999


def test_16_bit_grey_is_scaled_to_8():
    deep = np.linspace(0, 65535, 2400).astype(np.uint16).reshape(40, 60)
    got = decode.decode(encode(Image.fromarray(deep), "PNG"))
    want = deep / 65535 * 255
    assert (got == got[..., :1]).all()
    assert np.abs(got[..., 0] - want).max() <= 1


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    encoded = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode.decode(encoded)[0, 0].tolist() == [255, 0, 0]


def test_exif_rotation_is_not_applied():
    image = Image.new("RGB", (60, 40), "green")
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode.decode(encode(image, exif=exif)).shape == (40, 60, 3)


def test_an_image_that_would_take_too_much_memory_is_refused_before_it_is_decoded(monkeypatch):
    """20 kB of PNG that would take 1.2 GB, and the bytes per pixel that `MAX_BYTES` allows."""
    bomb = encode(Image.new("1", (13_000, 13_000)), "PNG", compress_level=1)
    with pytest.raises(
        decode.UndecodableImage, match=r"13000x13000 pixels take up to 1,183 MB.* than the 1,074 MB"
    ):
        decode.decode(bomb)
    image = Image.new("RGB", (60, 40))

    def train(data):
        uniforms = record_uniforms(0, *np.zeros((3, 1), int), decode.CROP_DRAWS)[0]
        decode.train_image(data, OUT, uniforms, scale=(0.3, 0.3), ratio=(1.0, 1.0))

    for per_pixel, encoded in (
        (6, encode(image)),
        (12, encode(image, progressive=True)),
        (10, encode(image, "PNG")),
        (7, encode(image.convert("1"), "PNG")),
        (8, encode(image.convert("I").convert("I;16"), "PNG")),
        (18, encode(image.convert("CMYK"), progressive=True)),
        (22, encode(image, "WEBP")),
    ):
        monkeypatch.setattr(image_formats, "MAX_BYTES", 60 * 40 * per_pixel)
        decode.decode(encoded)
        monkeypatch.setattr(image_formats, "MAX_BYTES", 60 * 40 * per_pixel - 1)
        for use in (decode.decode, train):
            with pytest.raises(decode.UndecodableImage, match="60x40 pixels take up to"):
                use(encoded)


def test_the_largest_image_of_imagenet_is_decoded():
    encoded = encode(Image.new("RGB", (9331, 6530), (90, 150, 30)), quality=95)
    decode.eval_image(encoded, OUT, resize=32)
    assert np.abs(OUT.astype(int) - (90, 150, 30)).max() <= 1


def test_a_line_of_pixels_is_resized_as_the_message_says():
    """Fast resampling would make 15,360,000 x 256 pixels of it; the other sees only the crop."""
    encoded = encode(Image.new("RGB", (60_000, 1), (90, 150, 30)), "PNG")
    with pytest.raises(
        decode.UndecodableImage, match="60000x1 pixels .* 15360000x256.*data.resampling=antialias"
    ):
        decode.eval_image(encoded, OUT, resize=256, resampling="fast")
    decode.eval_image(encoded, OUT, resize=256, resampling="antialias")
    assert (OUT == (90, 150, 30)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated_files_are_undecodable(photograph, kind):
    whole = encode(photograph.resize((64, 64)), kind)
    with pytest.raises(decode.UndecodableImage) as e:
        decode.decode(whole[: len(whole) // 2])
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize(
    "bad", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0junk", b"text", b"\x89PNG\r\n\x1a\n"]
)
def test_garbage_is_undecodable(bad):
    with pytest.raises(decode.UndecodableImage):
        decode.decode(bad)
