"""Geometry against Pillow, and torchvision's published rules written out again."""

import io
import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_jpegs import encode
from PIL import Image

from imagenet_jax.data import decode
from imagenet_jax.data.sampler import record_uniforms

OUT = np.zeros((32, 32, 3), np.uint8)
CROP = {"scale": (0.3, 0.3), "ratio": (1.0, 1.0)}
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def _uniforms(seed=0):
    return record_uniforms(seed, *np.zeros((3, 1), int), decode.CROP_DRAWS)[0]


def _share_within(a, b, levels):
    return np.mean(np.abs(a.astype(int) - np.asarray(b).astype(int)) <= levels)


def _torchvision_eval(image, resize, side, interpolation):
    """Resize(resize) and CenterCrop(side) as torchvision documents them, by Pillow alone."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    new_long = int(resize * long / short)
    size = (resize, new_long) if width <= height else (new_long, resize)
    resized = image.resize(size, FILTERS[interpolation])
    top, left = round((size[1] - side) / 2.0), round((size[0] - side) / 2.0)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "size", [(640, 427), (427, 640), (500, 375), (333, 500), (256, 256), (300, 257), (100, 80)]
)
def test_eval_image_is_torchvisions(photograph, size, interpolation):
    encoded = encode(photograph.resize(size), quality=92)
    want = _torchvision_eval(
        Image.open(io.BytesIO(encoded)).convert("RGB"), 256, 224, interpolation
    )
    out = np.zeros((224, 224, 3), np.uint8)
    decode.eval_image(encoded, out, resize=256, interpolation=interpolation)
    assert _share_within(out, want, 1) >= 0.999


@settings(max_examples=40)
@given(
    width=st.integers(30, 300),
    height=st.integers(30, 300),
    resize=st.integers(24, 80),
    seed=st.integers(0, 99),
)
def test_eval_image_is_torchvisions_for_any_size(width, height, resize, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    encoded = encode(Image.fromarray(pixels), "PNG")
    side = resize - seed % 9
    out = np.zeros((side, side, 3), np.uint8)
    decode.eval_image(encoded, out, resize=resize)
    want = _torchvision_eval(Image.fromarray(pixels), resize, side, "bilinear")
    assert _share_within(out, want, 1) >= 0.999


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_train_image_is_pillows_crop_and_resize(photograph, interpolation):
    encoded = encode(photograph, quality=92)
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    for seed in range(8):
        u = _uniforms(seed)
        top, left, h, w = decode.random_crop_box(
            image.height, image.width, u, (0.08, 1.0), (3 / 4, 4 / 3)
        )
        want = image.crop((left, top, left + w, top + h)).resize((224, 224), FILTERS[interpolation])
        out = np.zeros((224, 224, 3), np.uint8)
        decode.train_image(
            encoded, out, u, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), interpolation=interpolation
        )
        assert _share_within(out, want, 1) >= 0.999


def test_fast_resampling_has_no_low_pass_filter(photograph):
    """The same crop, differently resized: equal when enlarging, sharper when shrinking."""
    crop = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    for size, close in ((112, True), (896, False)):
        encoded = encode(photograph.resize((size, size)), quality=95)
        outs = {}
        for resampling in ("fast", "antialias"):
            outs[resampling] = np.zeros((224, 224, 3), np.uint8)
            decode.train_image(
                encoded, outs[resampling], _uniforms(), resampling=resampling, **crop
            )
        share = _share_within(outs["fast"], outs["antialias"], 2)
        assert (share > 0.99) == close


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("progressive", [False, True])
def test_fast_resampling_decodes_large_jpegs_at_a_fraction_of_their_size(
    photograph, factor, progressive
):
    """Pillow's draft mode uses the same scales of libjpeg."""
    size = (225 * factor - 1, 224 * factor)  # with a row and a column of blocks that are cut off
    encoded = encode(photograph.resize(size), quality=95, progressive=progressive)
    image = Image.open(io.BytesIO(encoded))
    if factor > 1:
        image.draft("RGB", (224, 224))
        assert image.size == (225, 224)
    want = np.asarray(image.convert("RGB"))[:, :224]
    out = np.zeros((224, 224, 3), np.uint8)
    crop = np.zeros(decode.CROP_DRAWS)  # at the top left corner
    decode.train_image(
        encoded, out, crop, scale=(224 / (225 - 1 / factor),) * 2, ratio=(1, 1), resampling="fast"
    )
    assert _share_within(out, want, 1) >= 0.999
    decode.eval_image(encoded, out, resize=224, resampling="fast")
    whole = np.asarray(image.convert("RGB"))
    wide = int(224 * size[0] / size[1])
    left = round((wide - 224) / 2)
    want = Image.fromarray(whole).resize((wide, 224), FILTERS["bilinear"])
    assert _share_within(out, np.asarray(want)[:, left : left + 224], 1) >= 0.999


@settings(max_examples=50, deadline=None)
@given(width=st.integers(1, 1200), height=st.integers(1, 1200), side=st.integers(1, 300))
def test_fast_resampling_shrinks_an_image_no_further_than_its_crop(width, height, side):
    encoded = encode(Image.new("RGB", (width, height), (90, 150, 30)))
    sizes = []

    def resize(image, *args, **kwargs):
        sizes.append(image.shape[:2])
        return real(image, *args, **kwargs)

    out = np.zeros((side, side, 3), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        real = cv2.resize
        patch.setattr(cv2, "resize", resize)
        decode.train_image(encoded, out, _uniforms(), **CROP, resampling="fast")
    ((tall, wide),) = sizes
    top, left, h, w = decode.random_crop_box(height, width, _uniforms(), *CROP.values())
    factor = next(f for f in (1, 2, 4, 8) if (h // f, w // f) == (tall, wide))
    assert factor == 1 or min(tall, wide) >= side
    assert factor == 8 or min(h, w) // (2 * factor) < side
    assert (abs(out.astype(int) - (90, 150, 30)) <= 2).all()


@pytest.mark.parametrize("resampling", ["fast", "antialias"])
def test_large_jpegs_that_only_pillow_reads_look_the_same_at_a_fraction(photograph, resampling):
    large = photograph.resize((896, 896))
    outs = [np.zeros((224, 224, 3), np.uint8) for _ in range(2)]
    for image, out in zip((large, large.convert("CMYK")), outs, strict=True):
        decode.eval_image(encode(image, quality=95), out, resize=224, resampling=resampling)
    assert np.mean(np.abs(outs[0].astype(int) - outs[1])) < 4  # CMYK loses some color


def _crop_by_the_rules(height, width, u, scale, ratio):
    """RandomResizedCrop as torchvision's documentation and paper describe it."""
    for i in range(10):
        area = height * width * (scale[0] + u[2 * i] * (scale[1] - scale[0]))
        log_ratio = math.log(ratio[0]) + u[2 * i + 1] * (math.log(ratio[1]) - math.log(ratio[0]))
        w = round(math.sqrt(area * math.exp(log_ratio)))
        h = round(math.sqrt(area / math.exp(log_ratio)))
        if w <= width and h <= height and w > 0 and h > 0:
            return math.floor(u[20] * (height - h + 1)), math.floor(u[21] * (width - w + 1)), h, w
    in_ratio = width / height
    w = round(height * ratio[1]) if in_ratio > ratio[1] else width
    h = round(width / ratio[0]) if in_ratio < ratio[0] else height
    return (height - h) // 2, (width - w) // 2, h, w


@settings(max_examples=200)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    low=st.floats(0.01, 1.0),
    high=st.floats(0.01, 1.0),
    ratio=st.sampled_from([(3 / 4, 4 / 3), (1.0, 1.0), (0.2, 5.0)]),
    seed=st.integers(0, 10_000),
)
def test_crop_box_follows_the_rules_and_stays_inside(height, width, low, high, ratio, seed):
    scale = (min(low, high), max(low, high))
    u = _uniforms(seed)
    box = decode.random_crop_box(height, width, u, scale, ratio)
    assert box == _crop_by_the_rules(height, width, u, scale, ratio)
    top, left, h, w = box
    assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width
    assert h > 0 and w > 0


def test_crops_of_a_large_square_have_the_distribution_of_the_paper():
    """Area uniform, aspect log-uniform, position uniform: Kolmogorov-Smirnov at the 0.1 % level."""
    from scipy.stats import kstest

    zeros = np.zeros(4000, int)
    u = record_uniforms(5, zeros, np.arange(4000), zeros, decode.CROP_DRAWS)
    side = 4000
    boxes = np.array(
        [decode.random_crop_box(side, side, row, (0.08, 0.5), (3 / 4, 4 / 3)) for row in u]
    )
    top, left, h, w = boxes.T
    assert kstest(h * w / side**2, "uniform", (0.08, 0.42)).pvalue > 0.001
    logs = np.log(w / h)
    low, high = np.log(3 / 4), np.log(4 / 3)
    assert kstest(logs, "uniform", (low, high - low)).pvalue > 0.001
    assert kstest((top + 0.5) / (side - h + 1), "uniform").pvalue > 0.001
    assert kstest((left + 0.5) / (side - w + 1), "uniform").pvalue > 0.001


def test_the_same_pixels_from_many_threads(photograph):
    from concurrent.futures import ThreadPoolExecutor

    encoded = encode(photograph.resize((300, 200)))

    def crop(seed):
        out = np.zeros((64, 64, 3), np.uint8)
        decode.train_image(encoded, out, _uniforms(seed), scale=(0.08, 1.0), ratio=(0.75, 1.33))
        return out

    want = [crop(seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        for a, b in zip(pool.map(crop, range(40)), want, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"optimize": True}]
)
def test_stopping_after_the_crop_changes_no_pixel(photograph, options):
    """Against Pillow's whole image: 4:2:0, 4:4:4, 4:2:2; and crops that end anywhere."""
    encoded = encode(photograph.resize((160, 333)), quality=90, **options)
    whole = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    for bottom in [1, 15, 16, 17, 31, 32, 150, 300, 316, 317, 333]:
        top = decode._decode_top(encoded, (333, 160), bottom)[:bottom]
        np.testing.assert_array_equal(top, whole[:bottom])


def test_progressive_and_grey_jpegs_are_decoded_whole(photograph):
    small = photograph.resize((160, 333))
    for encoded in (encode(small, progressive=True), encode(small.convert("L"))):
        whole = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        np.testing.assert_array_equal(decode._decode_top(encoded, (333, 160), 64)[:64], whole[:64])


def test_a_file_that_ends_inside_the_crop_is_undecodable(photograph):
    encoded = encode(photograph.resize((160, 333)), quality=90)
    out = np.zeros((32, 32, 3), np.uint8)
    u = _uniforms()
    top, _, height, _ = decode.random_crop_box(333, 160, u, (0.3, 0.3), (1.0, 1.0))
    crop = {"scale": (0.3, 0.3), "ratio": (1.0, 1.0)}
    share = (top + height) / 333
    assert 0.3 < share < 0.95
    with pytest.raises(decode.UndecodableImage):
        decode.train_image(encoded[: int(len(encoded) * share * 0.7)], out, u, **crop)
