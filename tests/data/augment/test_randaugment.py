"""The policies: geometry against Pillow, tables against the papers, draws.

Each operation is compared with torchvision's in tests/parity.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image
from scipy import stats

from imagenet_jax.data.augment import autoaugment, operations, randaugment_plain, three_augment
from imagenet_jax.data.augment import randaugment as policies
from imagenet_jax.runtime import xla
from imagenet_jax.training.sharding import batch_sharding, make_mesh

ROWS, HEIGHT, WIDTH = 16, 31, 42  # the batch divides over eight devices


def _images():
    """Noise, which shows every wrong pixel, and smooth waves, which interpolation follows."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = 128 + 100 * np.sin(y / 5)[..., None] * np.cos(x[..., None] / np.array([4, 5, 6]))
    noise = rng.integers(0, 256, (ROWS // 2, HEIGHT, WIDTH, 3))
    return np.concatenate([noise, np.stack([waves] * (ROWS // 2))]).astype(np.uint8)


IMAGES = _images()
unoptimized = partial(jax.jit, compiler_options=xla.options(optimize=False))


def _pillow_affine(image, matrix, resample):
    """The same view by Pillow, whose matrix counts from the corner, in pixels' centres."""
    centre = np.array([WIDTH / 2, HEIGHT / 2])
    offset = matrix[:, 2] + centre - matrix[:, :2] @ centre
    data = np.concatenate([matrix[:, :2], offset[:, None]], axis=1).ravel()
    return np.asarray(
        Image.fromarray(image).transform(
            (WIDTH, HEIGHT), Image.Transform.AFFINE, tuple(data), resample=resample
        )
    )


AMOUNTS = np.float32([0.0, 0.21, -0.47, 7.0, -31.3, 118.0, 0.3, -0.77])


@unoptimized
def _matrices(amounts):
    zero = jnp.zeros_like(amounts)
    return {
        "shear_x": operations.shear_x(amounts / 50, HEIGHT),
        "shear_y": operations.shear_y(amounts / 50, WIDTH),
        "translate_x": operations.translate(jnp.round(amounts / 4), zero),
        "translate_y": operations.translate(zero, jnp.round(amounts / 4)),
        "rotate": operations.rotate(amounts),
    }


@unoptimized
def _moved(images, matrix):
    """Move the first half with "nearest", the second with "bilinear"; say what of it is inside."""
    bilinear = partial(operations.affine, matrix=matrix, interpolation="bilinear")
    inside = bilinear(jnp.full_like(images[8:], 255)) == 255
    return operations.affine(images[:8], matrix), bilinear(images[8:]), inside


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
def test_geometry_is_pillows(name):
    matrix = _matrices(AMOUNTS)[name]
    nearest, smooth, inside = map(np.asarray, _moved(IMAGES, matrix))
    smooth = smooth.astype(int)
    for i in range(8):
        m = np.asarray(matrix[i], np.float64)
        theirs = _pillow_affine(IMAGES[i], m, Image.Resampling.NEAREST)
        # A source half-way between two pixels may be either: Pillow and we round differently.
        assert (nearest[i] != theirs).any(axis=-1).mean() < 0.01
        theirs = _pillow_affine(IMAGES[8 + i], m, Image.Resampling.BILINEAR)
        assert np.abs(smooth[i] - theirs)[inside[i]].max(initial=0) <= 1


def test_rotation_turns_as_pillow_rotates():
    turned, _, _ = _moved(IMAGES, _matrices(np.full(8, 30, np.float32))["rotate"])
    theirs = np.asarray(Image.fromarray(IMAGES[0]).rotate(30))
    assert (np.asarray(turned)[0] != theirs).any(axis=-1).mean() < 0.01


def test_shear_and_translation_move_as_their_names_say():
    image = np.zeros((1, 9, 9, 3), np.uint8)
    image[0, 4, 4] = 255

    @unoptimized
    def move(image, one):
        matrices = (
            operations.translate(2 * one, 0 * one),
            operations.translate(0 * one, 3 * one),
            operations.shear_x(0.5 * one, 9),  # row 4.5 times 0.5, to the left
            operations.shear_y(0.5 * one, 9),
        )
        return operations.affine(jnp.concatenate([image] * 4), jnp.concatenate(matrices))

    moved = np.asarray(move(image, np.ones(1, np.float32)))[..., 0]
    for out, place in zip(moved, [(4, 6), (7, 4), (4, 2), (2, 4)], strict=True):
        assert [tuple(p) for p in np.argwhere(out)] == [place]


def test_outside_is_black_or_the_fill():
    @unoptimized
    def move(images, x):
        affine = partial(operations.affine, images, operations.translate(x, 0 * x))
        return [(affine(how), affine(how, (1.0, 2.0, 3.0))) for how in ("nearest", "bilinear")]

    for black, filled in move(IMAGES[:1], np.float32([50])):
        assert not black.any()
        assert (np.asarray(filled) == [1, 2, 3]).all()


def test_each_image_gets_its_own_operation():
    """A batch of all fourteen is what each gives alone, and that is the function of its name."""
    table = policies.magnitudes("randaugment", HEIGHT, WIDTH)
    operation = np.arange(ROWS) % len(policies.OPERATIONS)
    magnitude = table[operation, 9]
    apply = unoptimized(partial(policies.apply, interpolation="bilinear"))
    together = np.asarray(apply(IMAGES, operation, magnitude))
    alone = _alone(IMAGES, magnitude)
    assert set(alone) == set(policies.OPERATIONS)
    for i, op in enumerate(operation):
        theirs = np.asarray(alone[policies.OPERATIONS[op]][i]).astype(int)
        # Compiled together, products and sums may be fused: one level, on the edge of two.
        assert np.abs(together[i] - theirs).max() <= 1, policies.OPERATIONS[op]
        assert (together[i] != theirs).mean() < 0.01, policies.OPERATIONS[op]


@unoptimized
def _alone(images, m):
    return {
        "identity": images,
        "shear_x": operations.affine(images, operations.shear_x(m, HEIGHT), "bilinear"),
        "shear_y": operations.affine(images, operations.shear_y(m, WIDTH), "bilinear"),
        "translate_x": operations.affine(images, operations.translate(m, 0 * m), "bilinear"),
        "translate_y": operations.affine(images, operations.translate(0 * m, m), "bilinear"),
        "rotate": operations.affine(images, operations.rotate(m), "bilinear"),
        "brightness": operations.brightness(images, m),
        "color": operations.saturation(images, m),
        "contrast": operations.contrast(images, m),
        "sharpness": operations.sharpness(images, m),
        "posterize": operations.posterize(images, m.astype(jnp.int32)),
        "solarize": operations.solarize(images, 255 * m),
        "autocontrast": operations.lookup(images, operations.autocontrast_table(images)),
        "equalize": operations.lookup(images, operations.equalize_table(images)),
    }


def test_magnitudes_are_the_papers():
    rand = dict(zip(policies.OPERATIONS, policies.magnitudes("randaugment", 331, 662), strict=True))
    wide = dict(
        zip(policies.OPERATIONS, policies.magnitudes("trivialaugment", 32, 32), strict=True)
    )
    weakest = {"posterize": 8, "solarize": 1}
    for table in (rand, wide):
        for name, row in table.items():
            assert row.shape == (31,) and row[0] == weakest.get(name, 0)
            steps = np.diff(row)
            assert (steps <= 0).all() if name in weakest else (steps >= 0).all()
    ends = {name: row[-1] for name, row in rand.items()}
    assert ends["translate_x"] == pytest.approx(300) and ends["translate_y"] == pytest.approx(150)
    assert ends["shear_x"] == pytest.approx(0.3) and ends["rotate"] == 30
    assert ends["posterize"] == 4 and ends["solarize"] == 0
    ends = {name: row[-1] for name, row in wide.items()}  # table 2 of arXiv:2103.10158
    assert ends["shear_y"] == ends["color"] == pytest.approx(0.99)
    assert ends["translate_x"] == ends["translate_y"] == 32 and ends["rotate"] == 135
    assert ends["posterize"] == 2 and ends["solarize"] == 0


def test_operations_and_signs_are_drawn_evenly():
    table = policies.magnitudes("randaugment", HEIGHT, WIDTH)
    draw = unoptimized(policies._draw)
    operation, magnitude = draw(jax.random.key(0), table, np.full(14000, 9))
    counts = np.bincount(operation, minlength=14)
    assert stats.chisquare(counts).pvalue > 1e-3
    signed = np.asarray(magnitude)[(np.asarray(operation) >= 1) & (np.asarray(operation) < 10)]
    assert stats.binomtest(int((signed < 0).sum()), len(signed)).pvalue > 1e-3
    assert (np.asarray(magnitude)[np.asarray(operation) >= 10] >= 0).all()


def test_sub_policies_and_their_steps_are_drawn_by_their_probabilities():
    draws = unoptimized(autoaugment.draw, static_argnums=1)(jax.random.key(0), 25000)
    sub_policy, done = np.asarray(draws.sub_policy), np.asarray(draws.done)
    assert stats.chisquare(np.bincount(sub_policy, minlength=25)).pvalue > 1e-3
    assert abs(np.asarray(draws.negative).mean() - 0.5) < 0.01
    for index, steps in enumerate(autoaugment.SUB_POLICIES):
        for step, (_, probability, _) in enumerate(steps):
            rate = done[sub_policy == index, step].mean()
            assert abs(rate - probability) < (0 < probability < 1) * 0.07 + 1e-9


@pytest.mark.parametrize(
    "policy",
    [
        policies.randaugment,
        policies.trivialaugment,
        pytest.param(autoaugment.autoaugment, marks=pytest.mark.full),
        pytest.param(randaugment_plain.randaugment_plain, marks=pytest.mark.full),
        pytest.param(three_augment.three_augment, marks=pytest.mark.full),
    ],
)
def test_a_sharded_batch_is_augmented_where_it_lies(policy):
    key = jax.random.key(5)
    function = unoptimized(lambda images: policy(images, key))
    images = jax.device_put(IMAGES, batch_sharding(make_mesh()))
    assert isinstance(images.sharding, NamedSharding) and images.sharding.spec != PartitionSpec()
    compiled = function.lower(images).compile()
    text = compiled.as_text()
    assert "all-gather" not in text and "all-to-all" not in text
    many, one = np.asarray(compiled(images)), np.asarray(function(IMAGES))
    assert np.abs(many.astype(int) - one).max() <= 1 and (many != one).mean() < 1e-3
    changed = (one != IMAGES).any(axis=(1, 2, 3))
    assert changed.sum() > ROWS / 2
