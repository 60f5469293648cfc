"""Mixup and cutmix against their definitions in NumPy, and their draws against distributions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from imagenet_jax.data.augment import mixing
from imagenet_jax.runtime import xla
from imagenet_jax.training.losses import cross_entropy

ROWS, HEIGHT, WIDTH, CLASSES = 5, 12, 9, 7


def _batch():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(ROWS, HEIGHT, WIDTH, 3)).astype(np.float32)
    targets = np.eye(CLASSES, dtype=np.float32)[rng.permutation(CLASSES)[:ROWS]]  # all different
    return images, targets


@functools.cache
def _mixed(**options):
    """Return the batch mixed with each of the seeds: f32[800, B, H, W, 3], f32[800, B, K]."""
    options = {"mixup": 0.0, "cutmix": 0.0, "switch": 0.5, "probability": 1.0} | options

    @functools.partial(jax.jit, compiler_options=xla.options(optimize=False))
    def mix(batch, seeds):
        return jax.lax.map(lambda seed: mixing.mix(batch, jax.random.key(seed), **options), seeds)

    return tuple(map(np.asarray, mix(_batch(), np.arange(800))))


MIXUP, CUTMIX = {"mixup": 0.4}, {"cutmix": 1.0}
BOTH = {"mixup": 0.2, "cutmix": 1.0, "switch": 0.25, "probability": 0.6}
TINY = {"mixup": 1e-4}


@pytest.mark.parametrize("options", [MIXUP, TINY])
def test_mixup_is_the_papers_sum(options):
    images, targets = _batch()
    mixed, soft = _mixed(**options)
    lam = (soft[:, 0] @ targets[0])[:, None, None]
    assert ((lam >= 0) & (lam <= 1)).all()
    partner, partner_target = np.roll(images, 1, axis=0), np.roll(targets, 1, axis=0)
    np.testing.assert_allclose(soft, lam * targets + (1 - lam) * partner_target, atol=1e-6)
    lam = lam[..., None, None]
    np.testing.assert_allclose(mixed, lam * images + (1 - lam) * partner, atol=1e-5)
    np.testing.assert_allclose(soft.sum(axis=-1), 1, rtol=1e-6)


def test_cutmix_replaces_a_rectangle_and_as_much_of_the_label():
    for mixed, soft in zip(*_mixed(**CUTMIX), strict=True):
        _check_cutmix(mixed, soft)


def _check_cutmix(mixed, soft):
    images, targets = _batch()
    own = (mixed == images).all(axis=-1)
    assert (own | (mixed == np.roll(images, 1, axis=0)).all(axis=-1)).all()
    assert (own == own[0]).all()  # one box for the batch
    box = ~own[0]
    rows, columns = box.any(axis=1), box.any(axis=0)
    assert (box == rows[:, None] & columns[None, :]).all()
    for line in (rows, columns):  # no gaps
        assert np.count_nonzero(np.diff(np.concatenate([[0], line, [0]]))) in (0, 2)
    kept = own[0].mean()
    want = kept * targets + (1 - kept) * np.roll(targets, 1, axis=0)
    np.testing.assert_allclose(soft, want, atol=1e-6)


def test_draws_follow_their_distributions():
    own = _batch()[1][0].argmax()

    def lam(options):
        return _mixed(**options)[1][:, 0, own]

    assert stats.kstest(lam(MIXUP), stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    # The share that cutmix keeps, beside a plain simulation of the paper's box.
    rng = np.random.default_rng(1)
    kept = []
    for value in rng.beta(1, 1, 20000):
        side = np.sqrt(1 - value) / 2
        spans = []
        for length in (HEIGHT, WIDTH):
            centre, half = rng.integers(length), int(side * length)
            spans.append(min(centre + half, length) - max(centre - half, 0))
        kept.append(1 - spans[0] * spans[1] / (HEIGHT * WIDTH))
    # Means: the share has few distinct values here, on which a Kolmogorov test would stumble.
    assert lam(CUTMIX).mean() == pytest.approx(np.mean(kept), abs=4 * 0.33 / 800**0.5)


def test_switch_and_probability_are_the_shares_of_batches():
    images, _ = _batch()

    partners = np.roll(images, 1, axis=0)

    def kind(mixed):
        if (mixed == images).all():
            return 0
        return 1 if ((mixed == images) | (mixed == partners)).all() else 2

    kinds = [kind(mixed) for mixed in _mixed(**BOTH)[0]]
    untouched, cut, mixed = np.bincount(kinds, minlength=3) / 800
    # A cutmix box of less than a pixel, and a mixup of lam = 1, leave a batch as it is too.
    assert mixed == pytest.approx(0.6 * 0.75, abs=0.08)
    assert cut == pytest.approx(0.6 * 0.25, abs=0.06)
    assert untouched == pytest.approx(0.4, abs=0.08)


def test_nothing_is_mixed_with_a_row_that_holds_no_image():
    images, targets = _batch()
    valid = np.array([1, 0, 1, 1, 1], np.float32)
    mixed, soft = mixing.blend(
        images, targets, np.full((HEIGHT, WIDTH), 0.25, np.float32), 0.25, valid
    )
    np.testing.assert_array_equal(mixed[2], images[2])
    np.testing.assert_array_equal(soft[2], targets[2])
    np.testing.assert_allclose(mixed[3], 0.25 * images[3] + 0.75 * images[2], rtol=1e-5)
    np.testing.assert_allclose(soft[0], 0.25 * targets[0] + 0.75 * targets[4])


def test_label_smoothing_of_mixed_targets_is_its_formula():
    _, targets = _batch()
    soft = 0.3 * targets + 0.7 * np.roll(targets, 1, axis=0)
    logits = np.random.default_rng(2).normal(size=(ROWS, CLASSES))
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    want = -0.9 * (soft * log_p).sum(axis=1) - 0.1 * log_p.mean(axis=1)
    got = cross_entropy(jnp.float32(logits), jnp.float32(soft), 0.1)
    np.testing.assert_allclose(got, want, rtol=1e-5)
