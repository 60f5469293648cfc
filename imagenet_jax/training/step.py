"""The train step and the eval step: pure functions of (state, batch), compiled once each."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imagenet_jax.data import augment
from imagenet_jax.data.augment import normalize
from imagenet_jax.runtime import xla
from imagenet_jax.training import ema, losses
from imagenet_jax.training.group_norms import group_norms
from imagenet_jax.training.metrics import METRICS
from imagenet_jax.training.sharding import batch_sharding, replicated
from imagenet_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Scalars = dict[str, jax.Array]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    graph: nnx.GraphDef,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    averaging: ema.Share | None = None,
) -> tuple[TrainState, Scalars]:
    """One optimizer step.

    Args:
      state: before the step.
      batch: "image" u8[B, H, W, 3] and "label" i32[B]; with config.data.undecodable = "skip" also
        "mask" f32[B]: rows of 0 enter neither the loss nor the metrics.
      graph: structure of the model.
      tx, schedule: the optimizer, and the learning rate to report.
      config: the run's; seed, model, data, augment, loss, optim, ema and log.group_norms are read.
      averaging: the share of each step in the EMA; None: 1 - config.ema.decay throughout.

    Returns:
      The state after it, and f32[] scalars: loss and the metrics with `in_training`, means over the
      batch before the update, grad_norm (before clipping), param_norm (after the update) and
      learning_rate; with config.log.group_norms also those of `group_norms`. The label of a mixed
      image is the class with the larger share (the first class, at a half).
    """
    grads, stats, means = gradient(state, batch, graph=graph, config=config)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.ema
    if average is not None:
        new = {"params": params, "batch_stats": stats}
        share = ema.share_at(config.ema, averaging, state.step)
        average = optax.incremental_update(new, average, share)
    metrics = {
        **means,
        "grad_norm": optax.tree.norm(grads),
        "param_norm": optax.tree.norm(params),
        "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
    }
    if config.log.group_norms:
        metrics |= group_norms(config.model.name, grads, updates, params)
    return TrainState(state.step + 1, params, stats, opt_state, average), metrics


def step_keys(seed: int, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The keys of augmentation and of dropout, of the step that follows `step` others."""
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return augment_key, dropout_key


class Gradient(NamedTuple):
    """Of the mean loss over a batch, as the optimizer gets it.

    Attributes:
      grads: like the parameters, before clipping.
      batch_stats: after the batch.
      means: {"loss" and the metrics with `in_training`: f32[]}, of the batch.
    """

    grads: Any
    batch_stats: Any
    means: Scalars


def gradient(
    state: TrainState, batch: Batch, *, graph: nnx.GraphDef, config: ConfigDict
) -> Gradient:
    """The gradient of `train_step`, of the same arguments."""
    augment_key, dropout_key = step_keys(config.seed, state.step)
    # The whole batch at once, before it is split: an image is mixed with any other of the batch.
    pixels, targets = augment.apply(
        batch["image"],
        batch["label"],
        augment_key,
        config.augment,
        num_classes=config.model.num_classes,
        mean=config.data.mean,
        std=config.data.std,
        dtype=config.model.dtype,
        valid=batch.get("mask"),
    )
    weight = _weights(batch["mask"]) if "mask" in batch else None
    loss_weight = losses.normalized_weights(targets, config.loss, weight)

    def mean(values: jax.Array, weight: jax.Array | None) -> jax.Array:
        wide = jnp.promote_types(values.dtype, jnp.float32)
        return jnp.mean(values if weight is None else values * weight, dtype=wide)

    def loss_and_stats(
        params: Any, stats: Any, pixels: jax.Array, targets: jax.Array, weights: Any, key: Any
    ):
        weight, loss_weight = weights
        model = nnx.merge(graph, params, stats)
        logits = model(pixels, train=True, rngs=nnx.Rngs(dropout=key))
        loss = mean(losses.per_image(logits, targets, config.loss), loss_weight)
        labels = targets if targets.ndim == 1 else jnp.argmax(targets, axis=-1)
        metrics = {
            metric.name: mean(metric.per_image(logits, labels), weight)
            for metric in METRICS.values()
            if metric.in_training
        }
        return loss, (nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), metrics)

    def micro_step(stats: Any, micro: tuple[Any, ...]):
        gradient = jax.value_and_grad(loss_and_stats, has_aux=True)
        (loss, (stats, metrics)), grads = gradient(state.params, stats, *micro)
        return stats, (grads, metrics | {"loss": loss})

    parts = config.optim.grad_accum_steps
    if parts == 1:
        stats, (grads, means) = micro_step(
            state.batch_stats, (pixels, targets, (weight, loss_weight), dropout_key)
        )
    else:
        rows = jax.tree.map(lambda x: _split(x, parts), (pixels, targets, (weight, loss_weight)))
        micros = (*rows, jax.random.split(dropout_key, parts))
        stats, (grads, means) = _accumulate(micro_step, state, micros, parts)
    return Gradient(grads, stats, means)


def _weights(mask: jax.Array) -> jax.Array:
    """f32[B] of mean 1, so that micro-batches average to the mean of the rows that count."""
    return mask / jnp.maximum(mask.mean(), 1.0 / len(mask))  # 0 where no row counts


def _split(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...], every part taking rows of every device.

    Row i goes to part i % parts, so that no row leaves the device it lies on.
    """
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)


def _accumulate(micro_step: Callable, state: TrainState, micros: Any, parts: int):
    """Return the batch statistics after all micro-batches, and the means of what each gives."""
    first = jax.tree.map(lambda x: x[0], micros)
    _, shapes = jax.eval_shape(micro_step, state.batch_stats, first)

    def body(carry: Any, micro: Any):
        stats, total = carry
        stats, out = micro_step(stats, micro)
        return (stats, jax.tree.map(jnp.add, total, out)), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)  # one tree of gradients
    (stats, total), _ = jax.lax.scan(body, (state.batch_stats, zeros), micros)
    return stats, jax.tree.map(lambda x: x / parts, total)


def eval_step(
    weights: dict[str, Any],
    batch: Batch,
    *,
    graph: nnx.GraphDef,
    config: ConfigDict,
    outputs: np.ndarray | None = None,
) -> Scalars:
    """Sums over one batch, padding excluded.

    Args:
      weights: {"params", "batch_stats"}.
      batch: "image" u8[B, H, W, 3], "label" i32[B], "mask" f32[B] (0 for padding).
      outputs: i32[K], the output of the head that each label means; the others are left out. None:
        each output is a label.

    Returns:
      f32[] sums over the images: count, and `per_image` of every metric; the loss is the softmax
      cross-entropy, whatever config.loss trains on.
    """
    model = nnx.merge(graph, weights["params"], weights["batch_stats"])
    pixels = normalize(batch["image"], config.data.mean, config.data.std, config.model.dtype)
    logits = _logits(model, pixels, config.eval.flip, outputs)
    mask = batch["mask"]
    per_image = {name: m.per_image(logits, batch["label"]) for name, m in METRICS.items()}
    per_image["count"] = jnp.ones_like(mask)
    # where, not a product: a padded row's loss may be infinite, and 0 * inf is NaN.
    return {k: jnp.sum(jnp.where(mask > 0, v, 0), dtype=jnp.float32) for k, v in per_image.items()}


def predict(
    weights: dict[str, Any],
    images: jax.Array | np.ndarray,
    *,
    graph: nnx.GraphDef,
    config: ConfigDict,
    outputs: np.ndarray | None = None,
) -> jax.Array:
    """Class probabilities f32[B, C] of u8[B, H, W, 3]; f32[B, K] with `outputs` of `eval_step`."""
    model = nnx.merge(graph, weights["params"], weights["batch_stats"])
    pixels = normalize(jnp.asarray(images), config.data.mean, config.data.std, config.model.dtype)
    return jax.nn.softmax(_logits(model, pixels, config.eval.flip, outputs))


def _logits(model: Any, pixels: jax.Array, flip: bool, outputs: np.ndarray | None) -> jax.Array:
    """f32[B, C], or the K of `outputs`; with `flip` the mean over each image and its mirror."""
    logits = model(pixels, train=False)
    if flip:
        logits = (logits + model(pixels[:, :, ::-1], train=False)) / 2
    return logits if outputs is None else logits[:, outputs]


def compile_train_step(
    abstract: TrainState,
    mesh: Mesh,
    graph: nnx.GraphDef,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    averaging: ema.Share | None = None,
) -> jax.stages.Wrapped:
    """`train_step` as one sharded program that reuses the state's memory."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(
        functools.partial(  # keeps the name train_step, which a trace shows
            train_step,
            graph=graph,
            tx=tx,
            schedule=schedule,
            config=config,
            averaging=averaging,
        ),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=xla.options(),
    )


def compile_eval_step(
    abstract: TrainState,
    mesh: Mesh,
    graph: nnx.GraphDef,
    config: ConfigDict,
    outputs: np.ndarray | None = None,
) -> jax.stages.Wrapped:
    """`eval_step` as one sharded program whose sums are on every device."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract.weights("raw"))
    return jax.jit(
        functools.partial(eval_step, graph=graph, config=config, outputs=outputs),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
        compiler_options=xla.options(),
    )
