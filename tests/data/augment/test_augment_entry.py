"""The one entry point: what the defaults do, what each field adds, and which are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagenet_jax import config as configs
from imagenet_jax.config.fields import IMAGENET_MEAN, IMAGENET_STD, defaults
from imagenet_jax.data import augment
from imagenet_jax.errors import UserError
from imagenet_jax.runtime import xla
from imagenet_jax.training.sharding import batch_sharding, make_mesh

ROWS, SIDE, CLASSES = 16, 24, 10
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (ROWS, SIDE, SIDE, 3)).astype(np.uint8)
LABELS = (np.arange(ROWS) % CLASSES).astype(np.int32)

EACH = {
    "auto_augment": "trivialaugment",
    "color_jitter": (0.4, 0.4, 0.4, 0.1),
    "lighting": 0.1,
    "random_erase": 0.9,
    "mixup": 0.2,
    "cutmix": 1.0,
}


def _compiled(dtype="float32", **fields):
    options = defaults("resnet18").augment
    options.update(fields)
    return jax.jit(
        lambda images, labels, key: augment.apply(
            images,
            labels,
            key,
            options,
            num_classes=CLASSES,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            dtype=dtype,
        ),
        compiler_options=xla.options(optimize=False),
    )


def _normalized(images):
    return (images / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)


def test_defaults_flip_and_normalize_and_leave_the_labels():
    pixels, targets = _compiled()(IMAGES, LABELS, jax.random.key(0))
    flipped = np.asarray(jax.random.bernoulli(jax.random.key(0), 0.5, (ROWS,)))
    assert 0 < flipped.sum() < ROWS
    want = np.where(flipped[:, None, None, None], IMAGES[:, :, ::-1], IMAGES)
    np.testing.assert_allclose(pixels, _normalized(want), atol=1e-5)
    np.testing.assert_array_equal(targets, LABELS)
    assert targets.dtype == jnp.int32


def test_flip_off_is_plain_normalization():
    pixels, _ = _compiled(flip=False)(IMAGES, LABELS, jax.random.key(0))
    np.testing.assert_allclose(pixels, _normalized(IMAGES), atol=1e-5)


@pytest.mark.parametrize("field", EACH)
def test_each_field_does_something_of_its_own(field):
    function = _compiled(flip=False, **{field: EACH[field]})
    one = np.asarray(function(IMAGES, LABELS, jax.random.key(1))[0])
    again, targets = function(IMAGES, LABELS, jax.random.key(1))
    other = np.asarray(function(IMAGES, LABELS, jax.random.key(2))[0])
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    # Of two draws: a box of cutmix may be less than a pixel.
    assert np.abs(np.stack([one, other]) - _normalized(IMAGES)).max() > 0.01
    assert np.isfinite(one).all()
    assert targets.ndim == (2 if field in ("mixup", "cutmix") else 1)


@pytest.mark.full
def test_everything_at_once_sharded_and_in_bfloat16():
    function = _compiled("bfloat16", **EACH | {"auto_augment": "randaugment_timm"})
    key = jax.random.key(3)
    pixels, targets = function(IMAGES, LABELS, key)
    assert pixels.dtype == jnp.bfloat16 and pixels.shape == IMAGES.shape
    assert targets.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(targets).sum(axis=1), 1, rtol=1e-6)
    placed = jax.device_put((IMAGES, LABELS), batch_sharding(make_mesh()))
    many, many_targets = function(*placed, key)
    np.testing.assert_array_equal(many_targets, targets)
    differs = np.asarray(many, np.float32) != np.asarray(pixels, np.float32)
    assert differs.mean() < 0.01  # the last bit of a fused sum


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"auto_augment": "randaument"}, r"augment\.auto_augment .* did you mean 'randaugment'"),
        (
            {"auto_augment": "randaugment", "auto_magnitude": 31},
            r"auto_magnitude = 31 must be from 0 to 30",
        ),
        ({"auto_augment": "randaugment_timm", "auto_magnitude": 11}, r"must be from 0 to 10"),
        (
            {"auto_augment": "randaugment", "auto_magnitude_std": 0.5},
            r"auto_magnitude_std = 0\.5 does nothing",
        ),
        ({"auto_augment": "randaugment", "auto_num_ops": 0}, r"auto_num_ops = 0 must be above 0"),
        (
            {"auto_augment": "trivialaugment", "auto_magnitude": 7},
            r"auto_magnitude = 7 does nothing",
        ),
        ({"auto_augment": "randaugment_plain", "auto_magnitude": 11}, r"must be from 0 to 10"),
        (
            {"auto_augment": "randaugment_plain", "auto_interpolation": "nearest"},
            r"auto_interpolation = 'nearest' does nothing",
        ),
        (
            {"auto_augment": "three_augment", "auto_interpolation": "nearest"},
            r"auto_interpolation = 'nearest' does nothing",
        ),
        ({"auto_augment": "autoaugment", "auto_num_ops": 3}, r"auto_num_ops = 3 does nothing"),
        (
            {"auto_interpolation": "nearest"},
            r"does nothing with config\.augment\.auto_augment = 'none'",
        ),
        ({"random_erase": 1.5}, r"augment\.random_erase = 1\.5 must be from 0 to 1"),
        ({"random_erase_fill": "noise"}, r"does nothing with config\.augment\.random_erase = 0\.0"),
        (
            {"color_jitter": (0.4, 0.4, 0.4)},
            r"augment\.color_jitter .* 4 values: .* brightness, contrast, saturation and hue",
        ),
        ({"color_jitter": (0.4, 0.4, 0.4, 0.6)}, r"a hue of at most 0\.5"),
        ({"mixup": -0.1}, r"augment\.mixup = -0\.1 must be at least 0"),
        ({"mixup": 0.2, "mix_switch_prob": 0.7}, r"mix_switch_prob = 0\.7 does nothing"),
        ({"mix_prob": 0.5}, r"mix_prob = 0\.5 does nothing"),
        ({"mixup": 0.2, "mix_prob": 0.0}, r"turns mixup and CutMix off"),
        ({"lighting": -1.0}, r"augment\.lighting = -1\.0 must be at least 0"),
    ],
)
def test_a_field_that_cannot_be_meant_is_refused(fields, message):
    config = defaults("resnet18")
    config.augment.update(fields)
    with pytest.raises(UserError, match=message):
        configs.check(config)


def test_every_field_together_is_accepted():
    config = defaults("resnet18")
    config.augment.update(EACH | {"mix_switch_prob": 0.3, "mix_prob": 0.8})
    configs.check(config)
