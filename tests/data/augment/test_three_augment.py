"""3-Augment against Pillow, bit for bit, and its draws."""

from functools import partial

import jax
import numpy as np
from PIL import Image, ImageFilter, ImageOps
from scipy import stats

from imagenet_jax.data.augment import three_augment
from imagenet_jax.runtime import xla


def test_gray_solarized_and_blurred_images_are_pillows():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:31, :42]
    waves = 128 + 100 * np.sin(y / 5)[..., None] * np.cos(x[..., None] / np.array([4, 5, 6]))
    pair = np.stack([rng.integers(0, 256, waves.shape), waves]).astype(np.uint8)
    radii = np.array([0.1, 0.37, 1.0, 1.4142, 1.4143, 1.7, 2.0, 2.4], np.float32)
    choice, row, radius = (a.ravel() for a in np.meshgrid([0, 1, 2], [0, 1], radii))
    ours = np.asarray(jax.jit(three_augment.choose)(pair[row], choice, radius))
    for got, image, kind, r in zip(ours, pair[row], choice, radius, strict=True):
        picture = Image.fromarray(image)
        want = (
            picture.convert("L").convert("RGB"),
            ImageOps.solarize(picture),
            picture.filter(ImageFilter.GaussianBlur(float(r))),
        )[kind]
        np.testing.assert_array_equal(got, want, err_msg=f"{kind} {r}")


def test_choices_and_radii_are_drawn_evenly():
    unoptimized = partial(jax.jit, compiler_options=xla.options(optimize=False))
    choice, radius = unoptimized(three_augment.draw, static_argnums=1)(jax.random.key(0), 6000)
    assert stats.chisquare(np.bincount(choice, minlength=3)).pvalue > 1e-3
    assert stats.kstest(radius, "uniform", (0.1, 1.9)).pvalue > 1e-3
    assert abs(np.corrcoef(choice, radius)[0, 1]) < 0.05
