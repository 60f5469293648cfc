"""Loss and top-1 of mixed images: whole batch, micro-batches, and eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from flax import nnx

from imagenet_jax.data import augment
from imagenet_jax.training.experiment import make_step_parts
from imagenet_jax.training.sharding import batch_sharding, make_mesh
from imagenet_jax.training.state import abstract_state, create_state, model_graph
from imagenet_jax.training.step import compile_train_step

ROWS = 32


def _batch(side):
    rng = np.random.default_rng(7)
    return {
        "image": rng.integers(0, 256, (ROWS, side, side, 3), dtype=np.uint8),
        "label": rng.integers(0, 10, ROWS).astype(np.int32),
    }


def _step(config, devices):
    """Return (state before, metrics) of one step."""
    mesh = make_mesh(1, jax.devices()[:devices])
    parts = make_step_parts(config, steps_per_epoch=10)
    state = create_state(config.model, parts.tx, False, mesh, config.seed)
    before = jax.device_get(state.weights("raw"))
    abstract = abstract_state(config.model, parts.tx, False, mesh)
    step = compile_train_step(parts, abstract, mesh)
    batch = jax.device_put(_batch(config.augment.image_size), batch_sharding(mesh))
    return before, jax.device_get(step(state, batch)[1])


@pytest.mark.full
def test_loss_uses_mixed_targets_and_top1_the_dominant_label(digits_path):
    config = tiny_config(digits_path, "vgg11")
    config.model.dropout = 0.0
    config.ema.decay = 0.0
    config.loss.label_smoothing = 0.1
    config.augment.update({"mixup": 0.4, "cutmix": 1.0})
    weights, whole = _step(config, 1)

    key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 0))[0]
    batch = _batch(config.augment.image_size)
    pixels, targets = augment.apply(
        jnp.asarray(batch["image"]),
        jnp.asarray(batch["label"]),
        key,
        config.augment,
        num_classes=10,
        mean=config.data.mean,
        std=config.data.std,
    )
    assert ((targets > 0).sum(axis=1) == 2).any()
    model = nnx.merge(model_graph(config.model), weights["params"], weights["batch_stats"])
    logits = np.asarray(model(pixels, train=False), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    smooth = 0.9 * np.asarray(targets) + 0.1 / 10
    np.testing.assert_allclose(whole["loss"], -(smooth * log_p).sum(axis=1).mean(), rtol=1e-4)
    right = logits.argmax(axis=1) == np.asarray(targets).argmax(axis=1)
    np.testing.assert_allclose(whole["top1"], right.mean(), atol=1e-6)

    config.optim.grad_accum_steps = 4
    _, parts = _step(config, 8)
    np.testing.assert_allclose(parts["loss"], whole["loss"], rtol=1e-4)
    np.testing.assert_allclose(parts["grad_norm"], whole["grad_norm"], rtol=1e-3)
    np.testing.assert_allclose(parts["top1"], whole["top1"], atol=1e-6)
