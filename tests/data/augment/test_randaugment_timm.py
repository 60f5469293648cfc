"""timm's RandAugment against Pillow's operations with the arguments that timm gives them."""

from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from imagenet_jax.data.augment import randaugment as policies
from imagenet_jax.runtime import xla

HEIGHT, WIDTH = 31, 42
FILL = (124, 116, 104)


def _images():
    """Noise, and smooth waves."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = 128 + 100 * np.sin(y / 5)[..., None] * np.cos(x[..., None] / np.array([4, 5, 6]))
    return np.stack([rng.integers(0, 256, waves.shape), waves]).astype(np.uint8)


IMAGES = _images()
unoptimized = partial(jax.jit, compiler_options=xla.options(optimize=False))
APPLY = unoptimized(partial(policies.apply, interpolation="bilinear", fill=FILL))
AMOUNTS = jax.jit(
    policies.timm_amounts, static_argnums=4, compiler_options=xla.options(optimize=False)
)
MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def _by_pillow(name, image, level, sign, increasing):
    """One operation as timm's auto_augment.py calls Pillow for it."""
    share = level / 10
    factor = max(0.1, 1 + sign * 0.9 * share) if increasing else share * 1.8 + 0.1
    bits = 4 - int(share * 4) if increasing else int(share * 4)
    threshold = 256 - int(share * 256) if increasing else int(share * 256)

    def moved(*matrix):
        return image.transform(
            image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL
        )

    def solarize_add():
        add = int(share * 110)
        return image.point([min(255, i + add) if i < 128 else i for i in range(256)] * 3)

    slope = sign * 0.3 * share
    return np.asarray(
        {
            "autocontrast": lambda: ImageOps.autocontrast(image),
            "equalize": lambda: ImageOps.equalize(image),
            "invert": lambda: ImageOps.invert(image),
            "rotate": lambda: image.rotate(
                sign * 30 * share, Image.Resampling.BILINEAR, fillcolor=FILL
            ),
            # Which Pillow did for 0 bits, too, when timm was written.
            "posterize": lambda: image.point(lambda v: v & (0xFF00 >> bits) & 255),
            "solarize": lambda: ImageOps.solarize(image, threshold),
            "solarize_add": solarize_add,
            "color": lambda: ImageEnhance.Color(image).enhance(factor),
            "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
            "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
            "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
            "shear_x": lambda: moved(1, slope, 0, 0, 1, 0),
            "shear_y": lambda: moved(1, 0, 0, slope, 1, 0),
            "translate_x": lambda: moved(1, 0, -sign * 0.45 * share * WIDTH, 0, 1, 0),
            "translate_y": lambda: moved(1, 0, 0, 0, 1, -sign * 0.45 * share * HEIGHT),
        }[name]()
    )


@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize("name", policies.TIMM_OPERATIONS)
def test_each_operation_is_timms(name, increasing):
    operation = np.full(2, policies.EVERY.index(name))
    for level in (0.0, 3.3, 7.0, 10.0):
        for sign in (1, -1):
            amounts = AMOUNTS(np.full(2, level), np.full(2, sign < 0), HEIGHT, WIDTH, increasing)
            amount = amounts[name]
            ours = APPLY(IMAGES, operation, amount)
            theirs = np.stack(
                [_by_pillow(name, Image.fromarray(x), level, sign, increasing) for x in IMAGES]
            )
            difference = np.abs(np.asarray(ours).astype(int) - theirs)
            if (
                name in MOVES
            ):  # on the border Pillow repeats the last pixel, we mix it with the fill
                white = APPLY(np.full_like(IMAGES, 255), operation, amount)
                difference = difference[np.asarray(white) == 255]
            exact = name in ("equalize", "invert", "posterize", "solarize", "solarize_add")
            # Grays are rounded by Pillow and cut off here; see test_colour.
            assert difference.max(initial=0) <= (0 if exact else 1.9), (level, sign)


def test_half_of_the_draws_are_done():
    rng = np.random.default_rng(1)
    images = rng.integers(10, 240, (3000, 6, 6, 3)).astype(np.uint8)
    augment = unoptimized(lambda x, key: policies.randaugment_timm(x, key, 1, 10.0, 0.0))
    out = augment(images, jax.random.key(0))
    changed = (np.asarray(out) != images).any(axis=(1, 2, 3)).mean()
    assert changed == pytest.approx(0.5, abs=0.05)  # each operation changes noise
