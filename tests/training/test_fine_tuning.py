"""Frozen layers and learning rates by depth, against steps written out with NumPy and optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import tiny_config

from imagenet_jax import config as config_io
from imagenet_jax import models
from imagenet_jax.errors import UserError
from imagenet_jax.training import layer_groups, optim
from imagenet_jax.training.layer_groups import FineTuning, describe_frozen_phase, layer_scales
from imagenet_jax.training.sharding import make_mesh
from imagenet_jax.training.state import abstract_state

NAMES = sorted({*(family.variants[0] for family in models.families()), "resnet50", "vgg11_bn"})


def _params(name):
    model = tiny_config("", name).model
    if name.startswith("bit"):
        model.width = 0.5  # 32 groups of channels must have one each
    shapes = abstract_state(model, optax.identity(), False, make_mesh())
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes.params)


@pytest.mark.parametrize("name", NAMES)
def test_groups_hold_each_parameter_once_and_scales_fall_from_the_head(name):
    params = _params(name)
    scales = layer_scales(params, name, 0.5)  # raises where a parameter is in no group or in two
    head = scales
    for key in models.family(name).head:
        head = head[key]
    assert set(jax.tree.leaves(head)) == {1.0}
    assert sorted(set(jax.tree.leaves(scales))) == [
        0.5**i for i in reversed(range(len(layer_groups.named_groups(params, name))))
    ]


def test_resnets_stages_count_from_the_head():
    scales = layer_scales(_params("resnet18"), "resnet18", 0.1)
    assert {k: next(iter(jax.tree.leaves(v))) for k, v in scales.items()} == {
        "conv1": pytest.approx(1e-5), "bn1": pytest.approx(1e-5), "layer1": pytest.approx(1e-4),
        "layer2": pytest.approx(1e-3), "layer3": 0.1**2, "layer4": 0.1, "fc": 1.0,
    }  # fmt: skip


def _run(config, tuning, steps, params, grads):
    tx = optim.make_optimizer(config.optim, lambda t: 0.1 / (1 + t), tuning)
    state = tx.init(params)
    update = jax.jit(tx.update)
    history = []
    for t in range(steps):
        updates, state = update(jax.tree.map(lambda g, t=t: g * (1 + t), grads), state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history


@pytest.mark.parametrize(
    "rule", ["adam", *(pytest.param(rule, marks=pytest.mark.full) for rule in ("sgd", "adamw"))]
)
def test_frozen_layers_stay_then_start_as_if_new_while_the_head_learns(rule):
    config = tiny_config("")
    config.optim.name = rule
    params = _params("small_cnn")
    grads = jax.tree.map(lambda x: np.full_like(x, 0.01), params)
    got = _run(config, FineTuning("small_cnn", 1.0, 2), 4, params, grads)
    free = _run(config, layer_groups.NO_TUNING, 4, params, grads)
    for t in range(4):  # the head never notices
        jax.tree.map(np.testing.assert_array_equal, got[t]["fc2"], free[t]["fc2"])
    for t in range(2):
        jax.tree.map(np.testing.assert_array_equal, got[t]["conv1"], params["conv1"])
    # From update 2 on: a new optimizer, at the learning rates and gradients of updates 2 and 3.
    fresh = optim.make_optimizer(config.optim, lambda t: 0.1 / (3 + t))
    state, later = fresh.init(params), params
    for t in (2, 3):
        scaled = jax.tree.map(lambda g, t=t: g * (1 + t), grads)
        updates, state = fresh.update(scaled, state, later)
        later = optax.apply_updates(later, updates)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
            got[t]["conv2"], later["conv2"],
        )  # fmt: skip


def test_frozen_gradients_do_not_count_for_clipping():
    config = tiny_config("")
    config.optim.grad_clip_norm, config.optim.weight_decay, config.optim.momentum = 1.0, 0.0, 0.0
    params = _params("resnet18")
    grads = jax.tree.map(np.ones_like, params)
    (after,) = _run(config, FineTuning("resnet18", 1.0, 5), 1, params, grads)
    size = sum(p.size for p in jax.tree.leaves(params["fc"]))
    want = params["fc"]["kernel"] - 0.1 / np.sqrt(size)  # norm 1 over the head alone
    np.testing.assert_allclose(after["fc"]["kernel"], want, rtol=1e-5)


@pytest.mark.parametrize("rule", ["sgd", pytest.param("lamb", marks=pytest.mark.full)])
def test_layer_decay_multiplies_what_a_layer_moves(rule):
    config = tiny_config("")
    config.optim.name = rule
    params = _params("resnet18")
    grads = jax.tree.map(lambda x: jnp.full_like(x, 0.01), params)
    (plain,) = _run(config, layer_groups.NO_TUNING, 1, params, grads)
    (scaled,) = _run(config, FineTuning("resnet18", 0.3, 0), 1, params, grads)
    for name, distance in (("fc", 0), ("layer4", 1), ("layer1", 4), ("conv1", 5)):
        jax.tree.map(
            lambda p, a, b, d=distance: np.testing.assert_allclose(
                b - p, (a - p) * 0.3**d, rtol=2e-2, atol=1e-6
            ),
            params[name], plain[name], scaled[name],
        )  # fmt: skip


def test_freezing_random_weights_and_freezing_under_lars_are_errors():
    config = tiny_config("x")
    config.optim.freeze_epochs = 0.1
    with pytest.raises(UserError, match="would freeze random weights"):
        config_io.check(config)
    config.init.weights, config.optim.name = "w.safetensors", "lars"
    with pytest.raises(UserError, match=r"freeze_epochs = 0\.1 does nothing with .*'lars'"):
        config_io.check(config)


def test_a_linear_probe_freezes_the_body_to_the_last_step():
    config = tiny_config("x")
    config.epochs = config.optim.freeze_epochs = 2.5  # 312.5 steps, which training rounds up
    tuning = layer_groups.make_fine_tuning(config, 125)
    assert tuning.frozen_steps > 313
    text = describe_frozen_phase(config, tuning.frozen_steps, 0)
    assert text == "training only the head (config.optim.freeze_epochs = 2.5)"


def test_the_frozen_phase_is_announced_with_its_end():
    config = tiny_config("x")
    config.epochs = 5.0
    config.optim.freeze_epochs = 2.5
    text = describe_frozen_phase(config, 1250, 0)
    assert "only the head up to step 1,250" in text
    assert "freeze_epochs = 2.5" in text
    assert describe_frozen_phase(config, 1250, 1249) == text
    assert describe_frozen_phase(config, 1250, 1250) == describe_frozen_phase(config, 0, 0) == ""
