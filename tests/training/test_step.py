"""The train step: sharding, accumulation, EMA, masks and dtypes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_state, tiny_config
from flax import nnx

from imagenet_jax.training.evaluate import compile_eval_step
from imagenet_jax.training.experiment import Evaluation, make_step_parts
from imagenet_jax.training.sharding import batch_sharding, make_mesh
from imagenet_jax.training.state import abstract_state, count_parameters, create_state, model_graph
from imagenet_jax.training.step import compile_train_step, gradient, train_step


def _batch(rows, side, mask=None):
    rng = np.random.default_rng(7)
    batch = {
        "image": rng.integers(0, 256, (rows, side, side, 3), dtype=np.uint8),
        "label": rng.integers(0, 10, rows).astype(np.int32),
    }
    return batch if mask is None else batch | {"mask": np.asarray(mask, np.float32)}


def _train(config, devices, fsdp=1, steps=3, rows=32, wide=False):
    """Return (state after some steps, metrics of each) on `devices` devices; wide: in float64."""
    mesh = make_mesh(fsdp, jax.devices()[:devices])
    config = config.copy_and_resolve_references()
    config.batch_size, config.epochs = rows, 10.0
    parts = make_step_parts(config, steps_per_epoch=10)
    ema = config.ema.decay > 0
    abstract = abstract_state(config.model, parts.tx, ema, mesh)
    state = create_state(config.model, parts.tx, ema, mesh, config.seed)
    if wide:
        state = jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.float32 else x, state)
    step = compile_train_step(parts, abstract, mesh)
    metrics = []
    for _ in range(steps):
        batch = jax.device_put(_batch(rows, config.augment.image_size), batch_sharding(mesh))
        state, m = step(state, batch)
        metrics.append(jax.device_get(m))
    return state, metrics


def _flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.device_get(tree))])


def _assert_close(a, b, rtol, atol):
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(jax.device_get(a)),
        jax.tree.leaves(jax.device_get(b)),
        strict=True,
    ):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "fsdp"), [(8, 1), *(pytest.param(8, n, marks=pytest.mark.full) for n in (4, 8))]
)
def test_eight_devices_compute_the_step_of_one(tiny, devices, fsdp):
    """Tolerances for float32 sums in another order: 1e-5 (loss), 1e-4 (gradient norm).

    Rounding may move a value of this small network across ReLU's kink, which changes the gradient
    by up to some percent; the test in float64 compares each entry.
    """
    one, (m_one,) = _train(tiny, 1, steps=1)
    many, (m_many,) = _train(tiny, devices, fsdp, steps=1)
    assert m_one["top1"] == m_many["top1"]
    np.testing.assert_allclose(m_one["loss"], m_many["loss"], rtol=1e-5)
    np.testing.assert_allclose(m_one["grad_norm"], m_many["grad_norm"], rtol=1e-4)
    _assert_close(one.batch_stats, many.batch_stats, rtol=1e-3, atol=1e-4)
    for name in ("params", "opt_state", "ema"):
        a, b = (_flat(getattr(state, name)) for state in (one, many))
        assert np.linalg.norm(a - b) <= 2e-2 * np.linalg.norm(a), name


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [4])
def test_eight_devices_equal_one_in_float64(tiny, fsdp):
    """Rounding errors grow over four steps; float64 distinguishes them from real differences."""
    with jax.enable_x64(True):
        one, m_one = _train(tiny, 1, steps=4, wide=True)
        many, m_many = _train(tiny, 8, fsdp, steps=4, wide=True)
    assert one.params["fc"]["kernel"].dtype == jnp.float64
    for a, b in zip(m_one, m_many, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-9)
    _assert_close(one, many, rtol=1e-7, atol=1e-9)


def test_fsdp_shards_parameters_optimizer_and_ema(quick):
    quick.model.width = 0.25  # every kernel has an axis that 4 divides
    mesh = make_mesh(4)
    state = create_state(quick.model, make_step_parts(quick, 10).tx, True, mesh, 0)
    on_one = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(state)
        for shard in leaf.addressable_shards
        if shard.device == jax.devices()[0]
    )
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert whole / 4 <= on_one < whole / 3.9


def test_the_whole_state_is_donated(quick):
    mesh = make_mesh(1, jax.devices()[:1])
    parts = make_step_parts(quick, steps_per_epoch=10)
    abstract = abstract_state(quick.model, parts.tx, True, mesh)
    state = create_state(quick.model, parts.tx, True, mesh, 0)
    step = compile_train_step(parts, abstract, mesh)
    step(state, jax.device_put(_batch(48, 16), batch_sharding(mesh)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.mark.slow
def test_accumulating_4_of_8_equals_32(quick):
    """Without batch norm and dropout, micro-batches average to the whole batch."""
    whole, m_whole = _train(quick, 1, steps=2)
    quick.optim.grad_accum_steps = 4
    parts, m_parts = _train(quick, 1, steps=2)
    eight, _ = _train(quick, 8, steps=2)
    np.testing.assert_allclose(m_whole[0]["loss"], m_parts[0]["loss"], rtol=1e-6)
    np.testing.assert_allclose(m_whole[0]["grad_norm"], m_parts[0]["grad_norm"], rtol=1e-5)
    _assert_close(whole.params, parts.params, rtol=1e-5, atol=1e-6)
    _assert_close(whole.params, eight.params, rtol=1e-5, atol=1e-6)


def test_accumulation_updates_batch_statistics_once_per_micro_batch(tiny):
    tiny.augment.flip = False
    tiny.optim.grad_accum_steps = 2
    state, _ = _train(tiny, 1, steps=1)
    start = _train(tiny, 1, steps=0)[0]
    # A constant activation's variance moves as 0.9 ** updates from its start at 1.
    batch = _batch(32, 16)
    pixels = (batch["image"] / 255 - tiny.data.mean) / tiny.data.std
    conv = nnx.merge(model_graph(tiny.model), start.params, start.batch_stats).conv1
    mean = np.zeros(conv.out_features)
    for part in (pixels[0::2], pixels[1::2]):
        out = np.asarray(conv(jnp.asarray(part, jnp.float32)))
        mean = 0.9 * mean + 0.1 * out.mean(axis=(0, 1, 2))
    np.testing.assert_allclose(state.batch_stats["bn1"]["mean"], mean, rtol=1e-4, atol=1e-6)


def test_ema_follows_its_recursion(quick):
    quick.ema.decay = 0.75
    states = [_train(quick, 1, steps=n)[0] for n in range(4)]
    want = jax.device_get(states[0].weights("raw"))
    for state in states[1:]:
        new = jax.device_get(state.weights("raw"))
        want = jax.tree.map(lambda e, p: 0.75 * e + 0.25 * p, want, new)
    _assert_close(states[-1].ema, want, rtol=1e-5, atol=1e-6)


@pytest.mark.full
def test_schedule_free_sgd_takes_the_gradient_between_the_weights_and_their_average(quick):
    quick.optim.update({"schedule": "constant", "warmup_epochs": 0.2, "weight_decay": 0.0})
    start, _ = _train(quick, 1, steps=0)
    z = x = start.params
    parts = make_step_parts(quick, steps_per_epoch=10)  # of SGD, whose gradient is at its weights
    compute = jax.jit(lambda state, batch: gradient(state, batch, parts).grads)
    squares = 0.0
    quick.optim.update({"name": "schedule_free_sgd", "b1": 0.5})
    got, metrics = _train(quick, 1, steps=4)
    for t, rate in enumerate(float(m["learning_rate"]) for m in metrics):
        y = jax.tree.map(lambda z, x: (z + x) / 2, z, x)
        grads = compute(start.replace(step=t, params=y), _batch(32, quick.augment.image_size))
        z = jax.tree.map(lambda z, g, rate=rate: z - rate * g, z, grads)
        squares += rate**2
        share = rate**2 / squares if rate else 0.0
        x = jax.tree.map(lambda x, z, share=share: x + share * (z - x), x, z)
    _assert_close(got.params, x, rtol=1e-4, atol=1e-6)
    assert not np.allclose(_flat(z), _flat(x), rtol=1e-3)


def test_a_linear_probe_has_the_gradient_of_the_head_and_no_other_backward_pass(quick):
    """The gradient of the head is that of a step that trains all layers."""
    quick.model.name = "small_cnn"
    parts = make_step_parts(quick, steps_per_epoch=10)
    state = random_state(abstract_state(quick.model, parts.tx, False, make_mesh(1)))
    batch = _batch(8, quick.augment.image_size)
    found, operations = [], []
    for epochs in (0.0, quick.epochs):
        config = quick.copy_and_resolve_references()
        config.optim.freeze_epochs = epochs
        one = dataclasses.replace(parts, config=config)
        compiled = jax.jit(functools.partial(gradient, parts=one)).lower(state, batch).compile()
        found.append(jax.device_get(compiled(state, batch).grads))
        operations.append(compiled.cost_analysis()["flops"])
    whole, probe = found
    _assert_close(probe.pop("fc2"), whole.pop("fc2"), 1e-5, 1e-7)
    assert not np.any(_flat(probe))
    assert np.all([np.any(x) for x in jax.tree.leaves(whole)])
    assert operations[1] < operations[0] / 2


def test_no_ema_by_default(quick):
    quick.ema.decay = 0.0
    assert _train(quick, 1, steps=1)[0].ema is None


def test_batch_statistics_of_a_bfloat16_model_stay_float32(tiny):
    tiny.model.dtype = "bfloat16"
    parts = make_step_parts(tiny, steps_per_epoch=10)
    before = abstract_state(tiny.model, parts.tx, True, make_mesh())
    after, _ = jax.eval_shape(functools.partial(train_step, parts=parts), before, _batch(32, 16))
    old, new = ({leaf.dtype for leaf in jax.tree.leaves(s.batch_stats)} for s in (before, after))
    assert old == new == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "model",
    ["small_cnn", *(pytest.param(m, marks=pytest.mark.full) for m in ("resnet18", "vgg11_bn"))],
)
def test_bfloat16_is_used_only_for_computation(digits_path, model):
    config = tiny_config(digits_path, model)
    config.model.dtype = "bfloat16"
    state, metrics = _train(config, 1, steps=2)
    assert {
        leaf.dtype for leaf in jax.tree.leaves((state.params, state.batch_stats, state.ema))
    } == {jnp.dtype("float32")}
    assert {m.dtype for m in metrics[0].values()} == {np.dtype("float32")}
    config.model.dtype = "float32"
    _, reference = _train(config, 1, steps=2)
    np.testing.assert_allclose(metrics[0]["loss"], reference[0]["loss"], rtol=0.02)
    assert metrics[0]["loss"] != reference[0]["loss"]  # bfloat16 is used


def test_reported_learning_rate_is_the_applied_one(quick):
    quick.optim.update({"schedule": "cosine", "warmup_epochs": 0.5, "momentum": 0.0})
    _, metrics = _train(quick, 1, steps=3)
    scale = 32 / 48  # batch size / base batch size
    assert [float(m["learning_rate"]) for m in metrics] == pytest.approx(
        [0.05 * scale * t / 5 for t in range(3)], rel=1e-5
    )


@pytest.mark.parametrize("devices", [1, 8])
def test_eval_step_ignores_the_content_of_padding(tiny, devices):
    mesh = make_mesh(1, jax.devices()[:devices])
    tx = make_step_parts(tiny, 10).tx
    abstract = abstract_state(tiny.model, tx, True, mesh)
    state = random_state(abstract)
    evaluation = Evaluation(tiny, mesh, None, model_graph(tiny.model), abstract)
    step = compile_eval_step(evaluation)
    batch = _batch(16, 16, mask=[1] * 11 + [0] * 5)
    sums = jax.device_get(step(state.weights("raw"), jax.device_put(batch, batch_sharding(mesh))))
    batch["image"][11:] = 255
    batch["label"][11:] = 9
    again = jax.device_get(step(state.weights("raw"), jax.device_put(batch, batch_sharding(mesh))))
    assert sums == again
    assert sums["count"] == 11

    model = nnx.merge(model_graph(tiny.model), state.params, state.batch_stats)
    pixels = (batch["image"][:11] / 255 - tiny.data.mean) / tiny.data.std
    logits = np.asarray(model(jnp.asarray(pixels, jnp.float32), train=False), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    labels = batch["label"][:11]
    np.testing.assert_allclose(sums["loss"], -log_p[np.arange(11), labels].sum(), rtol=1e-4)
    top = np.argsort(-logits, axis=1)
    assert sums["top1"] == (top[:, 0] == labels).sum()
    assert sums["top5"] == (top[:, :5] == labels[:, None]).any(1).sum()


def test_initial_state_depends_only_on_the_seed(quick):
    mesh = make_mesh()
    tx = make_step_parts(quick, 10).tx
    a, b, c = (create_state(quick.model, tx, False, mesh, seed) for seed in (3, 3, 4))
    kernels = [np.asarray(s.params["conv1"]["kernel"]) for s in (a, b, c)]
    assert (kernels[0] == kernels[1]).all()
    assert (kernels[0] != kernels[2]).any()
    assert count_parameters(a.params) > 0
