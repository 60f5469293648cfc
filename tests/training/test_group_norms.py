"""Norms by layer group against NumPy, from the checkpoints before and after a step."""

import functools
import json

import jax
import numpy as np
import pytest
from conftest import tiny_config, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_jax import models
from imagenet_jax import train as loop
from imagenet_jax.training import optim
from imagenet_jax.training.checkpoint import Checkpoints
from imagenet_jax.training.experiment import make_experiment
from imagenet_jax.training.layer_groups import group_norms
from imagenet_jax.training.metric_window import Interval
from imagenet_jax.training.sharding import make_mesh
from imagenet_jax.training.state import abstract_state

PLACES = {"conv1": ("conv1", "bn1")} | {n: (n,) for n in ("layer1", "layer2", "layer3", "layer4")}
RATE = 0.05


@pytest.fixture(scope="module")
def run(digits_path, tmp_path_factory):
    """Two steps of plain gradient descent over a sharded state, each saved."""
    config, workdir = tiny_config(digits_path), tmp_path_factory.mktemp("norms") / "run"
    config.epochs = 2 * 48 / 1437
    config.checkpoint.every_epochs = 48 / 1437
    config.log.every_steps = 1
    config.log.group_norms = True
    config.mesh.fsdp = 4
    config.optim.schedule, config.optim.base_lr = "constant", RATE
    config.optim.momentum = config.optim.weight_decay = 0.0
    assert loop.train(config, workdir) == 0
    checkpoints = Checkpoints(workdir / "checkpoints", write=False)
    states = [checkpoints.restore(make_experiment(config).abstract, step)[0] for step in (1, 2)]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (last,) = [line for line in lines if line["split"] == "train" and line["step"] == 2]
    return last, *(state.params for state in states)


def _flat(params, places):
    arrays = [np.ravel(x) for place in places for x in _leaves(params[place])]
    return np.concatenate(arrays).astype(np.float64)


def _leaves(tree):
    return [x for v in tree.values() for x in _leaves(v)] if isinstance(tree, dict) else [tree]


@pytest.mark.slow
def test_norms_are_those_of_the_checkpoints(run):
    values, before, after = run
    for group, places in (PLACES | {"fc": ("fc",)}).items():
        old, new = _flat(before, places), _flat(after, places)
        update = np.linalg.norm(new - old)
        assert values[f"param_norm/{group}"] == pytest.approx(np.linalg.norm(new), rel=1e-5)
        # The difference of two rounded weights knows the gradient to some 4 digits.
        assert values[f"grad_norm/{group}"] == pytest.approx(update / RATE, rel=1e-3)
        ratio = update / np.linalg.norm(new)
        assert values[f"update_ratio/{group}"] == pytest.approx(ratio, rel=1e-3)


@pytest.mark.slow
def test_squares_add_up_to_the_whole_models(run):
    values, *_ = run
    for name in ("grad_norm", "param_norm"):
        parts = [v for key, v in values.items() if key.startswith(f"{name}/")]
        assert len(parts) == 6
        assert np.sum(np.square(parts)) == pytest.approx(values[name] ** 2, rel=1e-5)


@functools.cache
def _shapes(name):
    tx = optim.make_optimizer(tiny_config("").optim, lambda step: 0.1)
    return abstract_state(tiny_model(name), tx, False, make_mesh()).params


@settings(max_examples=6)
@given(st.sampled_from(["resnet18", "vgg11_bn"]), st.integers(0, 2**16), st.floats(1e-6, 1e3))
def test_squares_add_up_of_any_gradients(name, seed, scale):
    """No parameter is left out, and none counted twice."""
    rng = np.random.default_rng(seed)
    draw = jax.tree.map(lambda x: rng.normal(0, scale, x.shape).astype(np.float32), _shapes(name))
    norms = group_norms(name, draw, draw, draw)
    grads = [float(v) for key, v in norms.items() if key.startswith("grad_norm/")]
    whole = sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(draw))
    assert len(grads) == len(models.family(name).groups)
    assert np.sum(np.square(grads)) == pytest.approx(whole, rel=1e-5)
    assert all(v == 1 for key, v in norms.items() if key.startswith("update_ratio/"))


def test_a_metric_that_begins_in_mid_interval_is_averaged_from_the_next():
    """Restarted with group norms on, or off: no mean over fewer steps than it says."""
    interval = Interval()
    interval.add({"loss": 1.0, "old": 5.0}, [])
    interval.add({"loss": 3.0, "new": 7.0}, [])
    assert interval.summary() == {"loss": 2.0}
    interval = interval.next()
    interval.add({"loss": 3.0, "new": 7.0}, [])
    assert interval.summary() == {"loss": 3.0, "new": 7.0}
