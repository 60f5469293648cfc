"""Training losses: softmax and binary cross-entropy, with label smoothing and class weights."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from imagenet_jax.errors import UserError


def per_image(logits: jax.Array, labels: jax.Array, loss: ConfigDict) -> jax.Array:
    """Return f32[B], the loss of each image according to `config.loss`.

    `logits` is f32[B, C]; `labels` is i32[B], or target distributions f32[B, C].
    """
    if loss.name == "softmax":
        return cross_entropy(logits, labels, loss.label_smoothing, loss.class_weights)
    if loss.name != "bce":
        raise UserError(f"config.loss.name = {loss.name!r}: use softmax | bce")
    return binary_cross_entropy(
        logits,
        labels,
        loss.label_smoothing,
        loss.class_weights,
        threshold=loss.bce_threshold,
        reduction=loss.bce_reduction,
    )


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    smoothing: float = 0.0,
    class_weights: Sequence[float] = (),
) -> jax.Array:
    """Return the softmax cross-entropy of each image.

    Args:
      logits: f32[B, C].
      labels: i32[B], or target distributions f32[B, C].
      smoothing: the target becomes (1 - smoothing) * target + smoothing / C
        (Szegedy et al. 2016, arXiv:1512.00567, section 7).
      class_weights: a factor for the term of each class, or (). With the row weights of
        `normalized_weights`, the mean over a batch equals torch's CrossEntropyLoss(weight=...).

    Returns:
      f32[B], in nats.
    """
    terms = _smooth(logits, labels, smoothing) * jax.nn.log_softmax(logits)
    if class_weights:
        terms = terms * jnp.asarray(class_weights, logits.dtype)
    return -jnp.sum(terms, axis=-1)


def binary_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    smoothing: float = 0.0,
    class_weights: Sequence[float] = (),
    *,
    threshold: float = 0.0,
    reduction: str = "mean",
) -> jax.Array:
    """Return the binary cross-entropy of each image over its classes.

    Wightman et al. 2021, arXiv:2110.00476, section 4.2.

    Args:
      logits, labels, smoothing: as for `cross_entropy`.
      class_weights: a factor for the term of each class, or ().
      threshold: smoothed or mixed targets above it become 1, others 0; 0: targets stay as they are.
      reduction: "mean" or "sum" over the C classes.

    Returns:
      f32[B], in nats.
    """
    targets = _smooth(logits, labels, smoothing)
    if threshold:
        targets = (targets > threshold).astype(logits.dtype)
    # -t log(sigmoid(x)) - (1 - t) log(1 - sigmoid(x)), without overflow.
    terms = jax.nn.softplus(logits) - targets * logits
    if class_weights:
        terms = terms * jnp.asarray(class_weights, logits.dtype)
    return jnp.sum(terms, axis=-1) if reduction == "sum" else jnp.mean(terms, axis=-1)


def normalized_weights(
    labels: jax.Array, loss: ConfigDict, weight: jax.Array | None
) -> jax.Array | None:
    """Return the row weights f32[B] for the mean loss over a batch; None for an unweighted mean.

    As in torch, the softmax loss of labels i32[B] is divided by the sum of their class weights,
    whereas the softmax loss of distributions f32[B, C], and binary losses, are divided by the
    number of rows. The weights are normalized over the whole batch, so that the average over
    micro-batches is the mean over the batch.

    Args:
      weight: f32[B] with mean 1; None: all rows have weight 1.
    """
    if not loss.class_weights or loss.name != "softmax" or labels.ndim == 2:
        return weight
    rows = jnp.ones(labels.shape, jnp.float32) if weight is None else weight
    total = jnp.mean(rows * jnp.asarray(loss.class_weights, jnp.float32)[labels])
    return rows / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)  # 0 if all rows are masked


def _smooth(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    num_classes = logits.shape[-1]
    targets = (
        labels if labels.ndim == 2 else jax.nn.one_hot(labels, num_classes, dtype=logits.dtype)
    )
    return (1.0 - smoothing) * targets + smoothing / num_classes
