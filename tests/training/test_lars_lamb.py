"""LARS, LAMB and L1 against the papers' algorithms in NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagenet_jax import config as config_io
from imagenet_jax.config.fields import defaults
from imagenet_jax.errors import UserError
from imagenet_jax.training import optim

RNG = np.random.default_rng(0)
PARAMS = {
    "conv": {"kernel": RNG.normal(size=(3, 3, 2, 4)), "bias": RNG.normal(size=4)},
    "bn": {"scale": RNG.normal(size=4), "bias": np.zeros(4)},  # a norm of 0: ratio 1
}
GRADS = [jax.tree.map(lambda p: RNG.normal(size=p.shape), PARAMS) for _ in range(4)]
RATES = [
    0.5,
    1.0,
    0.25,
    0.25,
]  # a varying rate shows whether it is applied before or after the momentum


def _run(params=PARAMS, grads=GRADS, **changes):
    """Return our parameters after the gradients, float32."""
    config = defaults().optim
    config.update(changes)
    tx = optim.make_optimizer(config, lambda t: jnp.asarray(RATES)[t])
    ours = jax.tree.map(jnp.float32, params)
    state = tx.init(ours)
    update = jax.jit(tx.update)
    for g in grads:
        updates, state = update(jax.tree.map(jnp.float32, g), state, ours)
        ours = optax.apply_updates(ours, updates)
    return ours


def _norm(x):
    return np.sqrt((x**2).sum())


def _lars(w, grads, *, adapt, decay, momentum, nesterov, coefficient):
    v = np.zeros_like(w)
    for rate, g in zip(RATES, grads, strict=True):
        if adapt:
            if _norm(w) > 0 and _norm(g) > 0:
                rate = rate * coefficient * _norm(w) / (_norm(g) + decay * _norm(w))
            g = g + decay * w
        v = momentum * v + rate * g
        w = w - (momentum * v + rate * g if nesterov else v)
    return w


def _lamb(w, grads, *, adapt, decay, b1, b2, eps):
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, (rate, g) in enumerate(zip(RATES, grads, strict=True), start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        if adapt:
            u = u + decay * w
            rate = rate * (_norm(w) / _norm(u) if _norm(w) > 0 and _norm(u) > 0 else 1.0)
        w = w - rate * u
    return w


def _compare(ours, rule, everything, **settings):
    for module, name in (("conv", "kernel"), ("conv", "bias"), ("bn", "scale"), ("bn", "bias")):
        adapt = everything or name == "kernel"
        want = rule(PARAMS[module][name], [g[module][name] for g in GRADS], adapt=adapt, **settings)
        np.testing.assert_allclose(
            ours[module][name], want, rtol=2e-5, atol=1e-6, err_msg=f"{module}.{name}"
        )


@pytest.mark.parametrize("everything", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
def test_lars_is_algorithm_1(everything, nesterov):
    settings = {"momentum": 0.8, "nesterov": nesterov}
    ours = _run(
        name="lars",
        weight_decay=0.05,
        trust_coefficient=0.02,
        decay_bias_and_norm=everything,
        **settings,
    )
    _compare(ours, _lars, everything, decay=0.05, coefficient=0.02, **settings)


@pytest.mark.parametrize("everything", [True, False])
def test_lamb_is_algorithm_2(everything):
    settings = {"b1": 0.8, "b2": 0.95, "eps": 1e-3}
    ours = _run(name="lamb", weight_decay=0.05, decay_bias_and_norm=everything, **settings)
    _compare(ours, _lamb, everything, decay=0.05, **settings)


@pytest.mark.parametrize("rule", ["lars", "lamb"])
def test_relative_update_depends_on_neither_the_scale_of_weights_nor_of_gradients(rule):
    """You et al. 2017, section 4: the relative change is the same for all scales of both."""
    small = _run(name=rule, weight_decay=0.0, eps=0.0, momentum=0.0, grads=GRADS[:1])
    large = _run(
        jax.tree.map(lambda p: 7 * p, PARAMS),
        [jax.tree.map(lambda g: 0.01 * g, GRADS[0])],
        name=rule,
        weight_decay=0.0,
        eps=0.0,
        momentum=0.0,
    )
    np.testing.assert_allclose(
        large["conv"]["kernel"], 7 * small["conv"]["kernel"], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("rule", ["lars", "lamb"])
def test_zero_gradient_or_weights_give_a_finite_update(rule):
    zeros = jax.tree.map(np.zeros_like, PARAMS)
    for params, grads in ((PARAMS, [zeros] * 4), (zeros, GRADS), (zeros, [zeros] * 4)):
        for leaf in jax.tree.leaves(_run(params, grads, name=rule)):
            assert np.isfinite(leaf).all()


@pytest.mark.parametrize("everything", [True, False])
def test_l1_adds_the_sign_of_the_weights_to_the_gradient(everything):
    ours = _run(weight_decay=0.0, momentum=0.0, l1=0.01, decay_bias_and_norm=everything)
    for module, name in (("conv", "kernel"), ("conv", "bias"), ("bn", "bias")):
        want = PARAMS[module][name]
        for rate, g in zip(RATES, GRADS, strict=True):
            strength = 0.01 if everything or name == "kernel" else 0.0
            want = want - rate * (g[module][name] + strength * np.sign(want))
        np.testing.assert_allclose(ours[module][name], want, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"name": "lamb", "nesterov": True}, "optim.nesterov"),
        ({"name": "sgd", "trust_coefficient": 0.02}, "optim.trust_coefficient"),
        ({"name": "lars", "eps": 1e-6}, "optim.eps"),
        ({"name": "lars", "weight_decay_form": "decoupled"}, "optim.weight_decay_form"),
        ({"name": "sgd", "b2": 0.9}, "optim.b2"),
    ],
)
def test_fields_that_the_optimizer_does_not_read_are_refused(changes, named):
    config = defaults()
    config.optim.update(changes)
    with pytest.raises(UserError, match=rf"config\.{named} = .* does nothing with"):
        config_io.check(config)
