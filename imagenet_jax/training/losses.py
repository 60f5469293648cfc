"""Cross-entropy forms."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy of each image.

    Args:
      logits: f32[B, C].
      labels: i32[B], or target distributions f32[B, C].
      smoothing: the target becomes (1 - smoothing) * target + smoothing / C
        (Szegedy et al. 2016, arXiv:1512.00567, section 7).

    Returns:
      f32[B], in nats.
    """
    num_classes = logits.shape[-1]
    targets = (
        labels if labels.ndim == 2 else jax.nn.one_hot(labels, num_classes, dtype=logits.dtype)
    )
    targets = (1.0 - smoothing) * targets + smoothing / num_classes
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)
