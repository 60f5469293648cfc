"""Mixup and cutmix against their definitions in NumPy, and their draws against distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from imagenet_jax.data.augment import mixing
from imagenet_jax.training.losses import cross_entropy

ROWS, HEIGHT, WIDTH, CLASSES = 5, 12, 9, 7


def _batch():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(ROWS, HEIGHT, WIDTH, 3)).astype(np.float32)
    targets = np.eye(CLASSES, dtype=np.float32)[rng.permutation(CLASSES)[:ROWS]]  # all different
    return images, targets


def _mixer(**options):
    options = {"mixup": 0.0, "cutmix": 0.0, "switch": 0.5, "probability": 1.0} | options
    images, targets = _batch()
    return jax.jit(lambda seed: mixing.mix((images, targets), jax.random.key(seed), **options))


MIXUP, CUTMIX = _mixer(mixup=0.4), _mixer(cutmix=1.0)
BOTH = _mixer(mixup=0.2, cutmix=1.0, switch=0.25, probability=0.6)
TINY = _mixer(mixup=1e-4)
seeds = st.integers(0, 2**31 - 1)


@settings(max_examples=30)
@given(seed=seeds, mixer=st.sampled_from([MIXUP, TINY]))
def test_mixup_is_the_papers_sum(seed, mixer):
    images, targets = _batch()
    mixed, soft = map(np.asarray, mixer(seed))
    lam = float(soft[0] @ targets[0])
    assert 0 <= lam <= 1
    partner, partner_target = np.roll(images, 1, axis=0), np.roll(targets, 1, axis=0)
    np.testing.assert_allclose(soft, lam * targets + (1 - lam) * partner_target, atol=1e-6)
    np.testing.assert_allclose(mixed, lam * images + (1 - lam) * partner, atol=1e-5)
    np.testing.assert_allclose(soft.sum(axis=1), 1, rtol=1e-6)


@settings(max_examples=30)
@given(seed=seeds)
def test_cutmix_replaces_a_rectangle_and_as_much_of_the_label(seed):
    images, targets = _batch()
    mixed, soft = map(np.asarray, CUTMIX(seed))
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

    def lam(mixer):
        return np.array([mixer(seed)[1][0, own] for seed in range(600)])

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
    assert lam(CUTMIX).mean() == pytest.approx(np.mean(kept), abs=4 * 0.33 / 600**0.5)


def test_switch_and_probability_are_the_shares_of_batches():
    images, _ = _batch()

    partners = np.roll(images, 1, axis=0)

    def kind(seed):
        mixed = np.asarray(BOTH(seed)[0])
        if (mixed == images).all():
            return 0
        return 1 if ((mixed == images) | (mixed == partners)).all() else 2

    kinds = [kind(seed) for seed in range(800)]
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
