"""Weights in and out, against torchvision's published keys and torch's layouts written out."""

import os
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from imagenet_jax import models
from imagenet_jax.config.fields import defaults
from imagenet_jax.errors import UserError
from imagenet_jax.weights import state_dicts, weight_file

# Entries of torchvision's state dicts, counters included.
ENTRIES = {
    "resnet18": 122,
    "resnet34": 218,
    "resnet50": 320,
    "resnet101": 626,
    "resnet152": 932,
    "vgg11": 22,
    "vgg13": 26,
    "vgg16": 32,
    "vgg19": 38,
    "vgg11_bn": 62,
    "vgg13_bn": 76,
    "vgg16_bn": 97,
    "vgg19_bn": 118,
}


def config_of(name: str):
    config = defaults(name).model
    config.width, config.num_classes = 1 / 16, 5
    return config


def abstract_trees(config):
    """(params, batch_stats) of shapes and dtypes."""
    model = nnx.eval_shape(lambda: models.build(config, rngs=nnx.Rngs(0)))
    _, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def random_trees(config) -> tuple[dict, dict]:
    """(params, batch_stats), every array of distinct random values."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), abstract_trees(config)
    )


def same(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize(
    "name",
    [
        # Deeper ResNets repeat the blocks of ResNet-50.
        pytest.param(n, marks=pytest.mark.full) if n in ("resnet101", "resnet152") else n
        for n in ENTRIES
    ],
)
def test_round_trip_is_exact(name):
    config = config_of(name)
    trees = random_trees(config)
    state_dict = state_dicts.to_torch(*trees, config)
    assert len(state_dict) == ENTRIES[name]
    back = state_dicts.from_torch(state_dict, config)
    assert same(back, trees)
    again = state_dicts.to_torch(*back, config)
    assert same(again, state_dict)


@pytest.mark.parametrize(
    ("name", "convolutions"),
    [
        ("vgg11", [0, 3, 6, 8, 11, 13, 16, 18]),
        ("vgg16", [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]),
        ("vgg16_bn", [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]),
    ],
)
def test_vgg_keys_are_torchvisions(name, convolutions):
    config = config_of(name)
    state_dict = state_dicts.to_torch(*random_trees(config), config)
    keys = {f"features.{i}" for i in convolutions} | {f"classifier.{i}" for i in (0, 3, 6)}
    norms = {f"features.{i + 1}" for i in convolutions} if name.endswith("_bn") else set()
    want = {f"{k}.{leaf}" for k in keys | norms for leaf in ("weight", "bias")}
    leaves = ("running_mean", "running_var", "num_batches_tracked")
    assert set(state_dict) == want | {f"{k}.{leaf}" for k in norms for leaf in leaves}
    for i in convolutions:
        assert state_dict[f"features.{i}.weight"].ndim == 4


def test_resnet_keys_and_shapes_are_torchvisions():
    config = defaults("resnet50").model
    params, batch_stats = jax.tree.map(
        lambda x: np.broadcast_to(np.float32(0), x.shape), abstract_trees(config)
    )
    state_dict = state_dicts.to_torch(params, batch_stats, config)
    shapes = {k: v.shape for k, v in state_dict.items()}
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["bn1.running_var"] == (64,)
    assert shapes["bn1.num_batches_tracked"] == ()
    assert shapes["layer2.0.conv2.weight"] == (128, 128, 3, 3)
    assert shapes["layer2.0.downsample.0.weight"] == (512, 256, 1, 1)
    assert shapes["layer2.0.downsample.1.running_mean"] == (512,)
    assert shapes["layer4.2.bn3.bias"] == (2048,)
    assert shapes["fc.weight"] == (1000, 2048)
    assert "layer2.1.downsample.0.weight" not in shapes


def test_layouts_compute_the_same():
    """Each layout's own formula, in NumPy, gives the same numbers from the two sides' weights."""
    config = config_of("vgg11")
    params, stats = random_trees(config)
    theirs = state_dicts.to_torch(params, stats, config)
    rng = np.random.default_rng(1)

    patch = rng.normal(size=(3, 3, 4))  # rows, columns, channels, under one output pixel
    ours = np.einsum("hwi,hwio->o", patch, params["features"][1][0]["conv"]["kernel"])
    want = np.einsum("ihw,oihw->o", patch.transpose(2, 0, 1), theirs["features.3.weight"])
    np.testing.assert_allclose(ours, want, rtol=1e-5, atol=1e-6)

    pooled = rng.normal(size=(7, 7, 32))
    ours = pooled.reshape(-1) @ params["classifier"][0]["kernel"]
    want = theirs["classifier.0.weight"] @ pooled.transpose(2, 0, 1).reshape(-1)
    np.testing.assert_allclose(ours, want, rtol=1e-5, atol=1e-4)

    hidden = rng.normal(size=256)
    ours = hidden @ params["classifier"][2]["kernel"]
    np.testing.assert_allclose(ours, theirs["classifier.6.weight"] @ hidden, rtol=1e-5, atol=1e-4)


def test_file_round_trip_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    config = config_of("resnet18")
    state_dict = state_dicts.to_torch(*random_trees(config), config)
    path = tmp_path / "weights.safetensors"
    weight_file.save(state_dict, path)
    assert same(weight_file.read(path).arrays, state_dict)
    assert same(load_file(path), state_dict)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


def test_save_keeps_the_values_of_views(tmp_path):
    view = np.arange(6, dtype=np.float32).reshape(2, 3).T
    weight_file.save({"w": view}, tmp_path / "w.safetensors")
    np.testing.assert_array_equal(load_file(tmp_path / "w.safetensors")["w"], view)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        weight_file.save({"x": np.zeros(3)}, tmp_path / "x.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_half_precision_is_widened(tmp_path):
    config = config_of("resnet18")
    trees = random_trees(config)
    state_dict = state_dicts.to_torch(*trees, config)
    half = {k: v.astype(np.float16) if v.ndim else v for k, v in state_dict.items()}
    save_file(half, tmp_path / "half.safetensors")
    params, _ = state_dicts.from_torch(
        weight_file.read(tmp_path / "half.safetensors").arrays, config
    )
    assert params["fc"]["kernel"].dtype == np.float32
    np.testing.assert_allclose(params["fc"]["kernel"], trees[0]["fc"]["kernel"], rtol=1e-3)


def test_counters_may_be_absent():
    config = config_of("resnet18")
    trees = random_trees(config)
    state_dict = state_dicts.to_torch(*trees, config)
    old = {k: v for k, v in state_dict.items() if "num_batches" not in k}
    assert len(old) == 102
    assert same(state_dicts.from_torch(old, config), trees)


def refusal(state_dict, config, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        state_dicts.from_torch(state_dict, config, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_unknown_and_misshapen_keys_are_named():
    config = config_of("resnet18")
    whole = state_dicts.to_torch(*random_trees(config), config)

    missing = {k: v for k, v in whole.items() if k != "layer3.1.bn2.running_var"}
    message = refusal(missing, config, origin="weights file w.pth")
    assert message.startswith("weights file w.pth does not fit resnet18")
    assert "1 missing: layer3.1.bn2.running_var" in message

    message = refusal({**whole, "head.weight": np.zeros(3)}, config)
    assert "1 not of this model: head.weight" in message

    message = refusal({**whole, "fc.bias": np.zeros(1000, np.float32)}, config)
    assert "1 of another shape: fc.bias (1000,), not (5,)" in message

    transposed = {**whole, "layer1.0.conv1.weight": np.zeros((3, 3, 4, 4), np.float32)}
    assert "layer1.0.conv1.weight (3, 3, 4, 4), not (4, 4, 3, 3)" in refusal(transposed, config)

    message = refusal({}, config)
    assert "102 missing: " in message
    assert "and 99 more" in message


def test_another_model_is_named_instead_of_its_keys():
    config, other = config_of("resnet18"), config_of("resnet34")
    whole = state_dicts.to_torch(*random_trees(other), other)
    message = refusal(whole, config)
    assert message == (
        "state dict does not fit config.model: it holds resnet34, width 0.0625, stem imagenet, 5 "
        "classes; config.model has name=resnet18: set --config.model.name=resnet34"
    )
    assert "layer1" not in message
    # Fine-tuning keeps its own number of classes, whatever the head of the file.
    with pytest.raises(UserError, match="name=resnet18: set --config.model.name=resnet34$"):
        state_dicts.from_torch(whole, dict(config) | {"num_classes": 3}, has_head=False)
    del whole["fc.weight"], whole["fc.bias"]
    message = refusal(whole, other)
    assert "holds resnet34, width 0.0625, stem imagenet, without a classifier" in message
    assert "imagenet_jax.main --weights=FILE" in message


def test_v1_is_told_from_v1_5_by_a_mark():
    config, other = config_of("resnet50_v1"), config_of("resnet50")
    trees = random_trees(config)
    v1 = state_dicts.to_torch(*trees, config)
    plain = state_dicts.to_torch(*trees, other)
    assert v1.keys() - plain.keys() == {"layer2.0.conv1.stride"}
    assert same(state_dicts.from_torch(v1, config), trees)
    assert state_dicts.identify(v1)["name"] == "resnet50_v1"
    assert state_dicts.identify(plain)["name"] == "resnet50"
    assert refusal(v1, other).endswith("set --config.model.name=resnet50_v1")
    # Caffe's weights under torchvision's names have no mark; the config says what they are.
    assert same(state_dicts.from_torch(plain, config), trees)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.nan, "NaN"),
        (-np.inf, "infinite"),
        (np.float64(1e300), "infinite in float32"),
        (np.int8(3), "int8"),
        (np.complex64(1j), "complex64"),
        (np.True_, "bool"),
    ],
)
def test_arrays_that_are_not_finite_floats_are_named(value, words):
    config = config_of("resnet18")
    whole = state_dicts.to_torch(*random_trees(config), config)
    array = whole["layer2.0.bn1.running_var"].astype(np.asarray(value).dtype)
    array[2] = value
    message = refusal({**whole, "layer2.0.bn1.running_var": array}, config)
    assert "state dict: layer2.0.bn1.running_var " in message
    assert words in message


def test_bad_targets_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"written as \.safetensors, not w\.pth"):
        weight_file.save({}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="nowhere does not exist"):
        weight_file.save({}, tmp_path / "nowhere" / "w.safetensors")
