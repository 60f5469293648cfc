"""Cross-entropy against its definition in NumPy float64."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_jax.training.losses import cross_entropy


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5),
    classes=st.integers(2, 12),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    scale=st.sampled_from([1.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_cross_entropy_is_its_definition(rows, classes, smoothing, scale, seed):
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
