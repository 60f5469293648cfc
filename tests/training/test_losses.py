"""Losses against their definitions in NumPy float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_jax import config as config_io
from imagenet_jax.config.fields import defaults
from imagenet_jax.errors import UserError
from imagenet_jax.training import losses
from imagenet_jax.training.losses import cross_entropy


@settings(max_examples=40)
@given(  # few shapes, because each one is compiled
    shape=st.sampled_from([(1, 2), (5, 3), (3, 12)]),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    scale=st.sampled_from([1.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_cross_entropy_equals_its_definition(shape, smoothing, scale, seed):
    rows, classes = shape
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(rows, classes))
    labels = rng.integers(classes, size=rows)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    own = log_p[np.arange(rows), labels]
    want = -(1 - smoothing) * own - smoothing * log_p.mean(axis=1)
    got = cross_entropy(jnp.float32(logits), jnp.int32(labels), smoothing)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
    soft = np.eye(classes)[labels]
    np.testing.assert_allclose(
        cross_entropy(jnp.float32(logits), jnp.float32(soft), smoothing), want, rtol=2e-5, atol=2e-5
    )


def _config(**changes):
    c = defaults().loss
    c.update(changes)
    return c


@settings(max_examples=15)
@given(
    rows=st.integers(1, 5),
    smoothing=st.sampled_from([0.0, 0.1]),
    threshold=st.sampled_from([0.0, 0.2]),
    reduction=st.sampled_from(["mean", "sum"]),
    weighted=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_binary_cross_entropy_equals_its_definition(
    rows, smoothing, threshold, reduction, weighted, seed
):
    """With mixed targets: the log likelihood of one independent Bernoulli variable per class."""
    rng = np.random.default_rng(seed)
    classes = 6
    logits, mixed = 3 * rng.normal(size=(rows, classes)), rng.dirichlet(np.ones(classes), rows)
    weights = tuple(rng.uniform(0.5, 2.0, classes)) if weighted else ()
    targets = (1 - smoothing) * mixed + smoothing / classes
    if threshold:
        targets = (targets > threshold) * 1.0
    p = 1 / (1 + np.exp(-logits))
    terms = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)) * (weights or 1.0)
    want = terms.sum(axis=1) if reduction == "sum" else terms.mean(axis=1)
    config = _config(
        name="bce",
        label_smoothing=smoothing,
        bce_threshold=threshold,
        bce_reduction=reduction,
        class_weights=weights,
    )
    got = losses.per_image(jnp.float32(logits), jnp.float32(mixed), config)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_binary_cross_entropy_does_not_overflow():
    logits = jnp.array([[1e4, -1e4], [-1e4, 1e4]])
    loss = losses.binary_cross_entropy(logits, jnp.array([0, 0]))
    np.testing.assert_allclose(loss, [0.0, 1e4])


@pytest.mark.parametrize("masked", [False, True])
def test_class_weights_give_a_weighted_mean_over_unmasked_rows(masked):
    """Sum of weight * loss over the sum of weights: scaling all class weights changes nothing."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(8, 3)), rng.integers(3, size=8)
    weights = np.array([0.5, 1.0, 4.0])
    count = np.array([1, 1, 0, 1, 0, 1, 1, 1]) if masked else np.ones(8)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    row = weights[labels] * count
    want = -(row * log_p[np.arange(8), labels]).sum() / row.sum()
    for scale in (1.0, 7.0):
        config = _config(class_weights=tuple(scale * weights))
        given = jnp.float32(count / count.mean()) if masked else None
        row_weights = losses.normalized_weights(jnp.int32(labels), config, given)
        rows = losses.per_image(jnp.float32(logits), jnp.int32(labels), config)
        np.testing.assert_allclose(jnp.mean(rows * row_weights), want, rtol=1e-5)


def test_fully_masked_batch_has_loss_0():
    config = _config(class_weights=(1.0, 2.0))
    weights = losses.normalized_weights(jnp.array([0, 1]), config, jnp.zeros(2))
    assert (weights == 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_weights": (1.0, 2.0)}, r"must be 1000 numbers above 0.*it has 2"),
        ({"class_weights": (0.0,) * 1000}, r"every value must be above 0"),
        ({"bce_reduction": "sum"}, r"bce_reduction = 'sum' does nothing with .*'softmax'"),
        ({"bce_threshold": 0.2}, r"bce_threshold = 0.2 does nothing with .*'softmax'"),
        ({"name": "bce", "bce_threshold": 0.2}, r"has no effect on targets of 0 and 1"),
        ({"name": "bc"}, r"did you mean 'bce'\?"),
    ],
)
def test_contradictory_loss_settings_are_refused(changes, message):
    config = defaults()
    config.loss.update(changes)
    with pytest.raises(UserError, match=message):
        config_io.check(config)
