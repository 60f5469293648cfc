"""Random weights that Keras saved, in both formats: logits of Keras and of the model read."""

import importlib
import re

import jax
import numpy as np
import pytest
from flax import nnx

from imagenet_jax import models
from imagenet_jax.config.fields import IMAGENET_MEAN, IMAGENET_STD, defaults
from imagenet_jax.weights import state_dicts, weight_file

pytestmark = [pytest.mark.parity, pytest.mark.full]
CAFFE_MEAN = np.array((123.68, 116.779, 103.939)) / 255
NAMES = ["VGG16", "VGG19", "ResNet50", "ResNet101", "ResNet152"]
NAMES += [f"EfficientNetB{i}" for i in range(8)]


@pytest.fixture
def keras(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")  # compiles nothing
    keras = pytest.importorskip("keras")
    keras.config.set_floatx("float64")
    with jax.enable_x64(True):
        yield keras
    keras.config.set_floatx("float32")


@pytest.mark.parametrize("name", [*NAMES, "ResNet50 before 2019"])
def test_logits_equal(name, keras, tmp_path):
    name, _, before = name.partition(" ")
    side = 224 if name.startswith("VGG") else 65  # odd sides are padded on both sides
    make = getattr(keras.applications, name)
    model = make(weights=None, classes=10, classifier_activation=None, input_shape=(side, side, 3))
    if before:
        model = keras.models.clone_model(model, clone_function=layer_before_2019)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        kind, shape = variable.path.split("/")[-1], variable.shape
        if kind in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.8, 1.25, shape))
        elif kind in ("beta", "moving_mean", "bias"):
            variable.assign(0.1 * rng.normal(size=shape))
        elif kind == "mean":
            variable.assign(np.reshape(IMAGENET_MEAN, shape))
        elif kind == "variance":
            variable.assign(np.reshape(np.square(IMAGENET_STD), shape))
        if kind not in ("mean", "variance", "count"):  # float32 loses nothing
            variable.assign(np.float32(keras.ops.convert_to_numpy(variable)))
    images = rng.uniform(0, 255, (2, side, side, 3))
    family = "efficientnet" if "Net" in name else name.lower()
    family = "resnet" if "Res" in name else family
    package = importlib.import_module(f"keras.applications.{family}")
    want = keras.ops.convert_to_numpy(
        model(package.preprocess_input(images.copy()), training=False)
    )
    is_caffe = family != "efficientnet"
    mean, std = (CAFFE_MEAN, 1 / 255) if is_caffe else (IMAGENET_MEAN, IMAGENET_STD)
    normalized = (images / 255 - mean) / std
    model.save_weights(tmp_path / "w.weights.h5")
    model.save(tmp_path / "w.h5")
    arrays = weight_file.read(tmp_path / "w.h5").arrays
    others = weight_file.read(tmp_path / "w.weights.h5").arrays
    assert arrays.keys() == others.keys()
    assert all(np.array_equal(array, others[key]) for key, array in arrays.items())
    config = defaults(state_dicts.identify(arrays)["name"]).model
    config.update(state_dicts.identify(arrays))
    plain = config.name.removeprefix("tf_").removesuffix("_v1")
    assert plain.replace("_", "") == name.lower()
    ours = nnx.eval_shape(lambda: models.build(config, rngs=nnx.Rngs(0)))
    trees = state_dicts.from_torch(arrays, config)
    nnx.update(ours, *(jax.tree.map(np.float64, tree) for tree in trees if tree))
    got = nnx.jit(lambda net, x: net(x, train=False))(ours, normalized)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max(), rtol=0)


def layer_before_2019(layer):
    """Return a new layer with the name and epsilon of keras_applications 1.0.6."""
    config = layer.get_config()
    found = re.fullmatch(r"conv(\d)_block(\d)_(\d)_(conv|bn)", layer.name)
    if found:
        stage, block, part, kind = found.groups()
        branch = {"0": "1", "1": "2a", "2": "2b", "3": "2c"}[part]
        kind = kind.replace("conv", "res")
        config["name"] = f"{kind}{stage}{' abcdef'[int(block)]}_branch{branch}"
    old = {"conv1_conv": "conv1", "conv1_bn": "bn_conv1", "predictions": "fc1000"}
    config["name"] = old.get(config["name"], config["name"])
    if "epsilon" in config:
        config["epsilon"] = 1e-3
    return type(layer).from_config(config)
