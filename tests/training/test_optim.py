"""Schedules against closed formulas, optimizers against NumPy, the weight-decay mask by name."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_jax.config.fields import defaults
from imagenet_jax.training import optim, schedules
from imagenet_jax.training.layer_groups import FineTuning


def _optim(**changes):
    c = defaults().optim
    c.update(changes)
    return c


def _rates(config, steps, *, batch_size=256, steps_per_epoch=10.0):
    schedule = schedules.make_schedule(
        config, batch_size=batch_size, steps_per_epoch=steps_per_epoch, total_steps=steps
    )
    return np.array([float(schedule(jnp.int32(t))) for t in range(steps)])


@settings(max_examples=25)
@given(
    spe=st.floats(0.7, 9.0),
    warmup=st.sampled_from([0.0, 0.5, 2.0]),
    milestones=st.lists(st.floats(0.0, 8.0), min_size=1, max_size=3),
)
def test_step_decay_multiplies_the_peak_by_the_factor_per_milestone(spe, warmup, milestones):
    config = _optim(warmup_epochs=warmup, milestones=tuple(milestones), warmup_start_lr=0.01)
    steps = math.ceil(8 * spe)
    warm = round(warmup * spe)
    want = [
        0.01 + (0.1 - 0.01) * t / warm
        if t < warm
        else 0.1 * 0.1 ** sum(t >= m * spe for m in milestones)
        for t in range(steps)
    ]
    np.testing.assert_allclose(_rates(config, steps, steps_per_epoch=spe), want, rtol=1e-5)


@pytest.mark.parametrize("warmup", [0.0, 3.0])
def test_cosine_follows_its_formula(warmup):
    config = _optim(schedule="cosine", warmup_epochs=warmup, end_lr=0.001)
    steps, warm = 100, round(warmup * 10)
    want = [
        0.1 * t / warm
        if t < warm
        else 0.001 + (0.1 - 0.001) * (1 + math.cos(math.pi * (t - warm) / (steps - warm))) / 2
        for t in range(steps)
    ]
    np.testing.assert_allclose(_rates(config, steps), want, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_polynomial_follows_its_formula(power):
    config = _optim(schedule="polynomial", power=power, warmup_epochs=1.0, end_lr=0.01)
    want = [
        0.1 * t / 10 if t < 10 else 0.01 + 0.09 * (1 - (t - 10) / 90) ** power for t in range(100)
    ]
    np.testing.assert_allclose(_rates(config, 100), want, rtol=1e-5)


def test_constant_is_the_peak_after_the_warm_up():
    want = [0.1 * min(1, t / 20) for t in range(50)]
    np.testing.assert_allclose(
        _rates(_optim(schedule="constant", warmup_epochs=2.0), 50), want, rtol=1e-6
    )


@settings(max_examples=25)
@given(spe=st.floats(0.7, 9.0), every=st.sampled_from([0.3, 1.0, 2.4, 20.0]))
def test_exponential_decay_is_a_staircase_from_the_start_of_the_run(spe, every):
    config = _optim(
        schedule="exponential", decay_factor=0.9, decay_every_epochs=every, warmup_epochs=2.0
    )
    warm = round(2 * spe)
    want = [
        0.1 * t / warm if t < warm else 0.1 * 0.9 ** math.floor(t / (every * spe) + 1e-9)
        for t in range(math.ceil(8 * spe))
    ]
    np.testing.assert_allclose(_rates(config, len(want), steps_per_epoch=spe), want, rtol=1e-5)


@pytest.mark.parametrize(
    ("scaling", "want"), [("linear", 3.2), ("sqrt", 0.1 * 32**0.5), ("none", 0.1)]
)
def test_learning_rate_scales_with_the_batch_size(scaling, want):
    config = _optim(lr_scaling=scaling, schedule="constant")
    assert schedules.peak_learning_rate(config, 8192) == pytest.approx(want)
    assert _rates(config, 2, batch_size=8192)[0] == pytest.approx(want)


PARAMS = {
    "conv": {"kernel": np.linspace(-1, 1, 8).reshape(2, 2, 2, 1), "bias": np.array([0.5])},
    "bn": {"scale": np.array([1.5]), "bias": np.array([-0.5])},
}


def test_decay_mask_is_true_only_for_kernels():
    mask = optim.decay_mask(PARAMS)
    assert mask == {"conv": {"kernel": True, "bias": False}, "bn": {"scale": False, "bias": False}}


def _numpy_updates(p, grads, config, decayed):
    """Return textbook updates of one parameter, float64."""
    lr, wd = config.base_lr, config.weight_decay * decayed
    m, v, nu = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    decoupled = config.name.endswith("adamw") or config.weight_decay_form == "decoupled"
    free, mean = config.name.startswith("schedule_free"), p
    b1, momentum = (0.0, 0.0) if free else (config.b1, config.momentum)
    for t, g in enumerate(grads, start=1):
        before = (1 - config.b1) * p + config.b1 * mean if free else p
        if not decoupled:
            g = g + wd * before
        if config.name.endswith("sgd"):
            m = momentum * m + g
            step = g + momentum * m if config.nesterov else m
        else:
            v = b1 * v + (1 - b1) * g
            nu = config.b2 * nu + (1 - config.b2) * g**2
            v_hat, nu_hat = v / (1 - b1**t), nu / (1 - config.b2**t)
            step = v_hat / (np.sqrt(nu_hat) + config.eps)
        p = p - lr * step
        if decoupled:
            p = p - lr * wd * before
        mean = mean + (p - mean) / t  # of equal learning rates
    return mean if free else p


@pytest.mark.parametrize("everything", [True, False])
@pytest.mark.parametrize(
    "rule",
    [
        {"name": "sgd"},
        {"name": "sgd", "nesterov": True},
        {"name": "sgd", "weight_decay_form": "decoupled"},
        {"name": "adam"},
        {"name": "adamw"},
        {"name": "schedule_free_sgd"},
        {"name": "schedule_free_adamw"},
    ],
    ids=lambda r: "-".join(str(v) for v in r.values()),
)
def test_optimizer_equals_the_textbook_updates(rule, everything):
    config = _optim(
        **rule, schedule="constant", base_lr=0.05, weight_decay=0.1, decay_bias_and_norm=everything
    )
    schedule = schedules.make_schedule(config, batch_size=256, steps_per_epoch=10, total_steps=100)
    tx = optim.make_optimizer(config, schedule)
    rng = np.random.default_rng(0)
    grads = [jax.tree.map(lambda p: rng.normal(size=p.shape), PARAMS) for _ in range(4)]

    params = jax.tree.map(jnp.float32, PARAMS)
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(jax.tree.map(jnp.float32, g), state, params)
        params = jax.tree.map(jnp.add, params, updates)

    for path in (("conv", "kernel"), ("conv", "bias"), ("bn", "scale"), ("bn", "bias")):
        decayed = everything or path[1] == "kernel"
        want = _numpy_updates(
            PARAMS[path[0]][path[1]], [g[path[0]][path[1]] for g in grads], config, decayed
        )
        np.testing.assert_allclose(params[path[0]][path[1]], want, rtol=2e-5, atol=1e-6)


def test_clipping_bounds_the_global_norm_before_the_update():
    config = _optim(
        schedule="constant", base_lr=1.0, momentum=0.0, weight_decay=0.0, grad_clip_norm=0.5
    )
    tx = optim.make_optimizer(config, lambda step: 1.0)
    params = jax.tree.map(jnp.float32, PARAMS)
    grads = jax.tree.map(lambda p: jnp.full(p.shape, 3.0), params)
    updates, _ = tx.update(grads, tx.init(params), params)
    norm = math.sqrt(sum(float(jnp.sum(u**2)) for u in jax.tree.leaves(updates)))
    assert norm == pytest.approx(0.5, rel=1e-5)


def _orthogonalized(matrix):
    """Five steps of Newton-Schulz's quintic iteration, with Jordan's coefficients."""
    transposed = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if transposed else matrix
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if transposed else x


def test_momentum_of_muon():
    """With the corrections of NAdam (Dozat 2016), which optax has and the authors do not."""
    tx = optim.make_optimizer(_optim(name="muon", momentum=0.9), lambda step: 0.01)
    rng = np.random.default_rng(0)
    grads = [10.0**i * rng.normal(size=(3, 3, 2, 4)) for i in range(4)]
    params = {"conv": {"kernel": jnp.zeros((3, 3, 2, 4))}}
    state, average = tx.init(params), 0.0
    for t, g in enumerate(grads, start=1):
        updates, state = tx.update({"conv": {"kernel": jnp.float32(g)}}, state, params)
        average = 0.9 * average + 0.1 * g
        direction = 0.9 * average / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
        want = -0.01 * _orthogonalized(direction.reshape(-1, 4)).reshape(g.shape)
        np.testing.assert_allclose(updates["conv"]["kernel"], want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_muon_orthogonalizes_kernels_outside_the_head(name):
    config = _optim(name="muon", momentum=0.95, weight_decay=0.1, decay_bias_and_norm=False)
    tuning = FineTuning(name, layer_decay=1.0, frozen_steps=0)
    tx = optim.make_optimizer(config, lambda step: 0.01, tuning)
    if name == "resnet18":
        params = {
            "conv1": {"kernel": (3, 3, 2, 4)},
            "bn1": {"scale": (4,)},
            "fc": {"kernel": (4, 3)},
        }
        matrix, others = ("conv1", "kernel"), [("fc", "kernel"), ("bn1", "scale")]
    else:
        depthwise, pointwise = {"kernel": (3, 3, 1, 4)}, {"kernel": (1, 1, 4, 8)}
        params = {"features": {1: {"conv": {0: {0: depthwise}, 1: pointwise}}}}
        matrix = ("features", 1, "conv", 1, "kernel")
        others = [("features", 1, "conv", 0, 0, "kernel")]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda shape: rng.normal(size=shape), params, is_leaf=lambda x: isinstance(x, tuple)
    )
    grads = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
    updates, _ = tx.update(
        jax.tree.map(jnp.float32, grads), tx.init(params), jax.tree.map(jnp.float32, params)
    )

    def at(tree, path):
        for key in path:
            tree = tree[key]
        return np.asarray(tree, np.float64)

    p, g = at(params, matrix), at(grads, matrix)
    # The first Nesterov step points along the gradient, whose size Newton-Schulz removes.
    step = _orthogonalized(g.reshape(-1, g.shape[-1]))
    step = step * max(1.0, step.shape[1] / step.shape[0]) ** 0.5
    want = -0.01 * (step.reshape(g.shape) + 0.1 * p)
    np.testing.assert_allclose(at(updates, matrix), want, rtol=1e-3, atol=1e-5)
    for path in others:  # the first step of Adam has the sign of the gradient
        p, g = at(params, path), at(grads, path)
        decay = 0.1 * p if path[-1] == "kernel" else 0.0
        size = np.abs(at(updates, path) / -0.01 - decay)
        np.testing.assert_allclose(size, size.flat[0], rtol=1e-4)
