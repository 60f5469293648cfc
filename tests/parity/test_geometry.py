"""Crops and evaluation preprocessing against torchvision's own, on photographs."""

import io

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402
from scipy import stats  # noqa: E402
from sklearn.datasets import load_sample_image  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from imagenet_jax.data import decode  # noqa: E402
from imagenet_jax.data.sampler import record_uniforms  # noqa: E402

pytestmark = pytest.mark.parity

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
DRAWS = 20_000
LEVEL = 1e-4  # of each Kolmogorov-Smirnov test; the draws are seeded, so a pass stays a pass


def _ours(height, width):
    zeros = np.zeros(DRAWS, int)
    uniforms = record_uniforms(0, zeros, np.arange(DRAWS), zeros, decode.CROP_DRAWS)
    return np.array([decode.random_crop_box(height, width, u, SCALE, RATIO) for u in uniforms])


def _torchvisions(height, width):
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    crop = v2.RandomResizedCrop(224, SCALE, RATIO)
    boxes = [crop.make_params([image]) for _ in range(DRAWS)]
    return np.array([[b["top"], b["left"], b["height"], b["width"]] for b in boxes])


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (64, 48), (40, 400)])
def test_crops_are_distributed_as_torchvisions(size):
    """Area, aspect and position; 40 x 400 falls back to the centre almost half of the time."""
    height, width = size
    ours, theirs = _ours(*size), _torchvisions(*size)
    for name, of in {
        "area": lambda b: b[:, 2] * b[:, 3] / (height * width),
        "aspect": lambda b: np.log(b[:, 3] / b[:, 2]),
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "bottom": lambda b: b[:, 0] + b[:, 2],
        "right": lambda b: b[:, 1] + b[:, 3],
    }.items():
        assert stats.ks_2samp(of(ours), of(theirs)).pvalue > LEVEL, name
    fallback = np.array(_fallback(height, width))
    shares = [(boxes == fallback).all(axis=1).mean() for boxes in (ours, theirs)]
    assert abs(shares[0] - shares[1]) < 0.02
    if size == (40, 400):
        assert shares[0] > 0.1


def _fallback(height, width):
    if width / height > RATIO[1]:
        wide = round(height * RATIO[1])
        return 0, (width - wide) // 2, height, wide
    return -1, -1, -1, -1


def test_the_test_would_notice_another_distribution():
    ours = _ours(375, 500)
    theirs = _torchvisions(375, 500)
    areas = [boxes[:, 2] * boxes[:, 3] / (375 * 500) for boxes in (ours, theirs)]
    assert stats.ks_2samp(areas[0] * 1.05, areas[1]).pvalue < LEVEL


def _jpeg(name, size, quality):
    image = Image.fromarray(load_sample_image(name)).resize(size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "side"), [(256, 224), (232, 224), (235, 224), (224, 224)])
def test_evaluation_sees_torchvisions_pixels(interpolation, resize, side):
    """Within 1 grey level on 99.9 % of pixels, as Pillow and as v2 resize."""
    mode = v2.InterpolationMode(interpolation)
    recipe = v2.Compose([v2.Resize(resize, mode, antialias=True), v2.CenterCrop(side)])
    for name in ("china.jpg", "flower.jpg"):
        for size, quality in [
            ((500, 375), 92),
            ((333, 500), 75),
            ((640, 427), 96),
            ((257, 301), 85),
        ]:
            encoded = _jpeg(name, size, quality)
            out = np.empty((side, side, 3), np.uint8)
            decode.eval_image(encoded, out, resize=resize, interpolation=interpolation)
            want = np.asarray(recipe(Image.open(io.BytesIO(encoded)).convert("RGB")))
            difference = np.abs(out.astype(int) - want.astype(int))
            assert (difference <= 1).mean() >= 0.999, (name, size, difference.max())
