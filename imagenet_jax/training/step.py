"""The train step, a pure function of (state, batch) that is compiled once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imagenet_jax.data import augment
from imagenet_jax.runtime import xla
from imagenet_jax.training import losses
from imagenet_jax.training.layer_groups import freeze_body, group_norms, is_linear_probe
from imagenet_jax.training.metrics import METRICS
from imagenet_jax.training.optim import gradient_point
from imagenet_jax.training.sharding import batch_sharding, get_shardings, replicated
from imagenet_jax.training.state import StepSize, TrainState

Batch = dict[str, jax.Array]
Scalars = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class StepParts:
    """Everything that a train step needs besides its state and batch.

    `experiment.make_step_parts` builds it.

    Attributes:
      graph: the model without its arrays.
      tx: the optimizer.
      schedule: learning rate of each step, for the metrics only; `tx` has its own.
      ema_step_size: how far the EMA moves toward the new weights at each step.
    """

    config: ConfigDict
    graph: nnx.GraphDef
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    ema_step_size: StepSize


def train_step(state: TrainState, batch: Batch, parts: StepParts) -> tuple[TrainState, Scalars]:
    """Take one optimizer step.

    Args:
      state: the state before the step.
      batch: "image" u8[B, H, W, 3] and "label" i32[B]. With config.data.undecodable = "skip", also
        "mask" f32[B]: rows where it is 0 are left out of the loss and the metrics.

    Returns:
      The state after the step, and f32[] scalars: the loss, including auxiliary heads, and the
      metrics with `in_training`, as means over the batch before the update; grad_norm before
      clipping; param_norm after the update; learning_rate. With config.log.group_norms, also those
      of `group_norms`. For metrics, the label of a mixed image is the class with the larger weight,
      or the lower class index if both are 0.5.
    """
    config = parts.config
    grads, stats, means = gradient(state, batch, parts)
    updates, opt_state = parts.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.ema
    if average is not None:
        new = {"params": params, "batch_stats": stats}
        average = optax.incremental_update(new, average, parts.ema_step_size(state.step))
    metrics = {
        **means,
        "grad_norm": optax.tree.norm(grads),
        "param_norm": optax.tree.norm(params),
        "learning_rate": jnp.asarray(parts.schedule(state.step), jnp.float32),
    }
    if config.log.group_norms:
        metrics |= group_norms(config.model.name, grads, updates, params)
    return TrainState(state.step + 1, params, stats, opt_state, average), metrics


def step_keys(seed: int, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the keys of augmentation and dropout for the step after `step` steps."""
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return augment_key, dropout_key


class Gradient(NamedTuple):
    """The gradient of the mean loss over a batch, as passed to the optimizer.

    Attributes:
      grads: a tree like the parameters, before clipping, taken at `optim.gradient_point`.
      batch_stats: batch-norm statistics after the batch.
      means: {name: f32[]} of the loss and the metrics with `in_training`, over the batch.
    """

    grads: Any
    batch_stats: Any
    means: Scalars


def gradient(state: TrainState, batch: Batch, parts: StepParts) -> Gradient:
    """Return the gradient that `train_step` applies, given the same arguments."""
    config, graph = parts.config, parts.graph
    augment_key, dropout_key = step_keys(config.seed, state.step)
    # Augment before splitting into micro-batches, so that any two images of the batch can be mixed.
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
        if is_linear_probe(config):
            params = freeze_body(params, config.model.name)
        model = nnx.merge(graph, params, stats)
        logits, auxiliary = model.training_logits(pixels, rngs=nnx.Rngs(dropout=key))
        loss = mean(losses.per_image(logits, targets, config.loss), loss_weight)
        for other in auxiliary:
            per_image = losses.per_image(other, targets, config.loss)
            loss += model.aux_weight * mean(per_image, loss_weight)
        labels = targets if targets.ndim == 1 else jnp.argmax(targets, axis=-1)
        metrics = {
            metric.name: mean(metric.per_image(logits, labels), weight)
            for metric in METRICS.values()
            if metric.in_training
        }
        return loss, (nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), metrics)

    def micro_step(stats: Any, micro: tuple[Any, ...]):
        gradient = jax.value_and_grad(loss_and_stats, has_aux=True)
        (loss, (stats, metrics)), grads = gradient(params, stats, *micro)
        return stats, (grads, metrics | {"loss": loss})

    params = gradient_point(state.params, state.opt_state)
    count = config.optim.grad_accum_steps
    if count == 1:
        stats, (grads, means) = micro_step(
            state.batch_stats, (pixels, targets, (weight, loss_weight), dropout_key)
        )
    else:
        rows = jax.tree.map(lambda x: _split(x, count), (pixels, targets, (weight, loss_weight)))
        micros = (*rows, jax.random.split(dropout_key, count))
        stats, (grads, means) = _accumulate(micro_step, state, micros, count)
    return Gradient(grads, stats, means)


def _weights(mask: jax.Array) -> jax.Array:
    """Return f32[B] with mean 1, so that micro-batches average to the mean over unmasked rows."""
    return mask / jnp.maximum(mask.mean(), 1.0 / len(mask))  # 0 if every row is masked


def _split(x: jax.Array, count: int) -> jax.Array:
    """Reshape [B, ...] to [count, B / count, ...], with rows of every device in each micro-batch.

    Row i goes to micro-batch i % count, so that rows stay on their devices.
    """
    return x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)


def _accumulate(micro_step: Callable, state: TrainState, micros: Any, count: int):
    """Return the batch statistics after `count` micro-batches, and the means of their results.

    Only the sum of the gradients is in memory.
    """
    first = jax.tree.map(lambda x: x[0], micros)
    _, shapes = jax.eval_shape(micro_step, state.batch_stats, first)

    def body(carry: Any, micro: Any):
        stats, total = carry
        stats, out = micro_step(stats, micro)
        return (stats, jax.tree.map(jnp.add, total, out)), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (stats, total), _ = jax.lax.scan(body, (state.batch_stats, zeros), micros)
    return stats, jax.tree.map(lambda x: x / count, total)


def compile_train_step(parts: StepParts, abstract: TrainState, mesh: Mesh) -> jax.stages.Wrapped:
    """Return `train_step` as one sharded program of (state, batch), which donates the state."""
    shardings = get_shardings(abstract)
    return jax.jit(
        functools.partial(train_step, parts=parts),  # partial keeps the name for profiler traces
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=xla.options(platform=mesh.devices.flat[0].platform, devices=mesh.size),
    )
