"""Batch norm from second moments, against its formula in float64 and against the plain form."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from imagenet_jax import models
from imagenet_jax.errors import UserError
from imagenet_jax.models import resnet
from imagenet_jax.models.layers import ConvNorm, PointwiseConv
from imagenet_jax.models.norms import BatchNorm, product_norms
from imagenet_jax.training.sharding import batch_sharding, make_mesh, replicated

EPS = 1e-5


def plain_norm(x, kernel, scale, bias):
    """Return what `product_norms` returns, computed as a convolution and BatchNorm compute it."""
    norm = BatchNorm(kernel.shape[1], momentum=0.0)
    norm.scale[...], norm.bias[...] = scale, bias
    out = norm(x @ kernel.astype(x.dtype), train=True)
    n = x.size // x.shape[-1]
    return out, norm.mean[...], norm.var[...] * (n - 1) / n


def results_and_gradients(norm, x, kernel, scale, bias, d):
    """Return out, mean, var, and the gradients of sum(out * d) by the four arguments."""

    def call(*arguments):
        out, *moments = norm(*arguments)
        return out, moments

    out, vjp, moments = jax.vjp(call, x, kernel, scale, bias, has_aux=True)
    return [out, *moments, *vjp(d.astype(out.dtype))]


def one_product(*arguments):
    """Return (out, mean, var) of `product_norms` of one product."""
    out, [(mean, var)] = product_norms(*([a] for a in arguments), eps=(EPS,))
    return out, mean, var


@jax.jit
def from_moments(*arguments):
    return results_and_gradients(one_product, *arguments)


@jax.jit
def from_plain(*arguments):
    return results_and_gradients(plain_norm, *arguments)


def reference(x, kernel, scale, bias, d):
    """The same, from the textbook's formulas in float64 NumPy."""
    rows, d = x.reshape(-1, x.shape[-1]), d.reshape(-1, d.shape[-1])
    y = rows @ kernel
    root = 1 / np.sqrt(y.var(0) + EPS)
    normal = (y - y.mean(0)) * root
    d_scale, d_bias = (d * normal).sum(0), d.sum(0)
    d_y = scale * root * (d - d_bias / len(y) - normal * d_scale / len(y))
    out = (normal * scale + bias).reshape(*x.shape[:-1], -1)
    d_x = (d_y @ kernel.T).reshape(x.shape)
    return [out, y.mean(0), y.var(0), d_x, rows.T @ d_y, d_scale, d_bias]


def draw(seed, shape, outputs, mean, deviation):
    """Return x, kernel, scale, bias and d, exact in bfloat16 or float32, as float64."""
    rng = np.random.default_rng(seed)
    channels = shape[-1]
    x = deviation * rng.normal(size=shape) + mean * rng.uniform(0.5, 1.5, channels)
    kernel = rng.normal(size=(channels, outputs)) * np.sqrt(2 / outputs)
    scale, bias = rng.uniform(0.5, 1.5, outputs), rng.normal(size=outputs)
    d = rng.normal(size=(*shape[:-1], outputs))
    half = [np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64) for a in (x, d)]
    x, d, *weights = *half, *(np.float32(a).astype(np.float64) for a in (kernel, scale, bias))
    return x, *weights, d


NAMES = ("out", "mean", "var", "d_x", "d_kernel", "d_scale", "d_bias")


@settings(max_examples=6)
@given(
    shape=st.tuples(*(st.integers(1, 4) for _ in range(2)), st.integers(2, 4), st.integers(1, 9)),
    outputs=st.integers(1, 20),
    seed=st.integers(0, 2**31),
)
def test_float64_equals_the_formula(shape, outputs, seed):
    arguments = draw(seed, shape, outputs, 2.0, 1.0)
    with jax.enable_x64(True):
        found = from_moments(*map(jnp.asarray, arguments))
    for name, value, want in zip(NAMES, found, reference(*arguments), strict=True):
        scale = np.abs(want).max()
        np.testing.assert_allclose(value, want, rtol=1e-6, atol=1e-8 * scale + 1e-10, err_msg=name)


def test_gradients_equal_finite_differences():
    x, kernel, scale, bias, d = draw(0, (2, 3, 3, 4), 6, 1.0, 1.0)
    with jax.enable_x64(True):
        arguments = tuple(map(jnp.asarray, (x, kernel, scale, bias)))
        norm = jax.jit(lambda *a: one_product(*a)[0] * d)
        check_grads(norm, arguments, order=1, modes=["rev"])


def test_a_sum_of_products_is_the_sum_of_its_terms():
    first, second = (draw(i, (2, 3, 3, 3 + i), 6, 1.0, 1.0)[:4] for i in range(2))
    d = np.random.default_rng(2).normal(size=(2, 3, 3, 6))

    def together(first, second):
        terms = [list(pair) for pair in zip(first, second, strict=True)]
        return product_norms(*terms, eps=(EPS, 10 * EPS))

    def apart(first, second):
        (out, a), (out2, b) = (
            product_norms(*([a] for a in term), eps=(eps,))
            for term, eps in ((first, EPS), (second, 10 * EPS))
        )
        return out + out2, [*a, *b]

    def compute(form):
        out, vjp, moments = jax.vjp(form, first, second, has_aux=True)
        return jax.tree.leaves((out, moments, vjp(jnp.asarray(d))))

    with jax.enable_x64(True):
        for ours, theirs in zip(compute(together), compute(apart), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@settings(max_examples=30)
@given(
    outputs=st.sampled_from((64, 256)),
    deviation=st.sampled_from((1e-3, 0.03, 1.0, 30.0)),
    ratio=st.sampled_from((0.0, 1.0, 10.0, 100.0)),
    seed=st.integers(0, 2**31),
)
def test_bfloat16_errors_are_no_larger_than_of_the_plain_form(outputs, deviation, ratio, seed):
    """`ratio`: mean over standard deviation of x; a variance is down to 1e-4 of a squared mean.

    Where the mean is 0, the output is rounded four times, that of the plain form three times: its
    error is sqrt(4 / 3) times as large. All others are smaller, up to the scatter of the errors.
    """
    x, *weights, d = draw(seed, (8, 12, 12, 64), outputs, ratio * deviation, deviation)
    half = [jnp.asarray(x, jnp.bfloat16), *map(jnp.float32, weights), jnp.asarray(d, jnp.bfloat16)]
    results = (reference(x, *weights, d), from_moments(*half), from_plain(*half))
    for name, exact, moments, plain in zip(NAMES, *results, strict=True):
        error, allowed = (np.sqrt(np.mean((np.float64(a) - exact) ** 2)) for a in (moments, plain))
        size = np.sqrt(np.mean(exact**2))
        assert error <= 1.25 * allowed + 1e-6 * size, (name, error / size, allowed / size)
        if ratio >= 10 and name in ("out", "mean", "d_kernel", "d_scale"):
            assert error <= 0.7 * allowed, (name, error / size, allowed / size)


def test_eight_devices_normalize_over_the_global_batch():
    arguments = draw(0, (16, 3, 3, 8), 24, 2.0, 1.0)
    mesh = make_mesh()
    rows, every = batch_sharding(mesh), replicated(mesh)
    with jax.enable_x64(True):
        step = jax.jit(
            from_moments,
            in_shardings=(rows, every, every, every, rows),
            out_shardings=[rows, every, every, rows, every, every, every],
        )
        compiled = step.lower(*map(jnp.asarray, arguments)).compile()
        placed = jax.device_put(arguments, (rows, every, every, every, rows))
        found = compiled(*placed)
    for name, value, want in zip(NAMES, found, reference(*arguments), strict=True):
        np.testing.assert_allclose(value, want, rtol=1e-9, atol=1e-11, err_msg=name)
    # The mean of x and its covariance; in the backward pass G and the gradient of the bias.
    assert 1 <= len(re.findall(r" all-reduce(?:-start)?\(", compiled.as_text())) <= 4


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bn_group", [0, 2])
def test_conv_norm_equals_the_plain_form(stride, bn_group):
    x = jnp.asarray(np.random.default_rng(0).normal(1.0, 1.0, (4, 5, 5, 8)), jnp.float32)

    def train_and_evaluate(norm_impl):
        layer = ConvNorm.make(
            8, 24, 1, stride, bn_group=bn_group, norm_impl=norm_impl, rngs=nnx.Rngs(0)
        )
        out = layer(x, train=True)
        return out, layer(x, train=False), layer.norm.mean[...], layer.norm.var[...]

    for plain, moments in zip(*map(train_and_evaluate, ("plain", "moments")), strict=True):
        np.testing.assert_allclose(moments, plain, rtol=1e-4, atol=1e-5)


def test_one_value_per_channel_is_refused():
    layer = ConvNorm.make(2, 4, 1, norm_impl="moments", rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="one value per channel"):
        layer(jnp.ones((1, 1, 1, 2)), train=True)


@pytest.mark.parametrize(
    "fields",
    [{}, pytest.param({"blur_pool": "ffcv", "bn_group": 2}, marks=pytest.mark.full)],
    ids=["imagenet", "ffcv"],
)
def test_a_network_has_the_same_variables_outputs_and_gradients(fields, monkeypatch):
    """In float64, so that only a real difference shows; one block in each stage."""
    monkeypatch.setitem(resnet.VARIANTS, "resnet50", resnet.Variant((1, 1, 1, 1)))
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3))

    def compute(norm_impl):
        config = tiny_model("resnet50", norm_impl=norm_impl, **fields)
        model = jax.jit(lambda key: models.build(config, rngs=nnx.Rngs(key)))(jax.random.key(0))
        graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
        products = sum(isinstance(m, PointwiseConv) for _, m in nnx.iter_modules(model))
        assert products == (12 if norm_impl == "moments" else 0)
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), (params, stats))

        @jax.jit
        def gradient(params, stats):
            def loss(params):
                model = nnx.merge(graph, params, nnx.clone(stats))
                logits = model(jnp.asarray(images), train=True)
                moved = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
                return jnp.sum(jnp.sin(logits)), (logits, moved)

            return jax.grad(loss, has_aux=True)(params)

        gradients, aux = gradient(*wide)
        return jax.tree.map(np.asarray, (nnx.to_pure_dict(gradients), aux))

    with jax.enable_x64(True):
        plain, moments = compute("plain"), compute("moments")
    assert jax.tree.structure(plain) == jax.tree.structure(moments)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(moments), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-8 * np.abs(a).max())


def test_auto_is_plain_on_a_cpu_and_moments_on_accelerators():
    config = tiny_model("resnet50")
    assert models.resolve_norm_impl(config)["norm_impl"] == "plain"
    assert models.resolve_norm_impl(config, "cpu")["norm_impl"] == "plain"
    for platform in ("tpu", "gpu", "cuda"):
        assert models.resolve_norm_impl(config, platform)["norm_impl"] == "moments"
    config.norm_impl = "plain"
    assert models.resolve_norm_impl(config, "tpu")["norm_impl"] == "plain"
    assert models.resolve_norm_impl(tiny_model("vgg11"), "tpu") == tiny_model("vgg11")
