"""Files of keras.applications, built by hand with the names and layouts of Keras' source."""

import sys

import numpy as np
import pytest

from imagenet_jax.config.fields import defaults
from imagenet_jax.errors import UserError
from imagenet_jax.weights import state_dicts, weight_file

# keras/src/applications/vgg16.py: name, shape of the kernel at a sixteenth of the channels.
VGG16 = {
    "block1_conv1": (3, 3, 3, 4), "block1_conv2": (3, 3, 4, 4),
    "block2_conv1": (3, 3, 4, 8), "block2_conv2": (3, 3, 8, 8),
    "block3_conv1": (3, 3, 8, 16), "block3_conv2": (3, 3, 16, 16), "block3_conv3": (3, 3, 16, 16),
    "block4_conv1": (3, 3, 16, 32), "block4_conv2": (3, 3, 32, 32), "block4_conv3": (3, 3, 32, 32),
    "block5_conv1": (3, 3, 32, 32), "block5_conv2": (3, 3, 32, 32), "block5_conv3": (3, 3, 32, 32),
    "fc1": (1568, 256), "fc2": (256, 256), "predictions": (256, 10),
}  # fmt: skip


def arrays(shapes):
    rng = np.random.default_rng(0)
    return {
        name: (rng.normal(size=s).astype(np.float32), rng.normal(size=s[-1:]).astype(np.float32))
        for name, s in shapes.items()
    }


def write(path, layers, form):
    """`form`: "published" in 2016, "keras 2" or "keras 3" .h5, "weights" for .weights.h5."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for i, (name, (kernel, bias)) in enumerate(layers.items()):
            if form == "weights":
                group = file.create_group(f"layers/conv2d_{i}/vars")
                group.attrs["name"] = name
                group["0"], group["1"] = kernel, bias
                continue
            group, variables = {
                "published": (name, (f"{name}_W_1:0", f"{name}_b_1:0")),
                "keras 2": (f"{name}/{name}", ("kernel:0", "bias:0")),
                "keras 3": (f"model_weights/{name}/vgg16/{name}", ("kernel", "bias")),
            }[form]
            file[f"{group}/{variables[0]}"], file[f"{group}/{variables[1]}"] = kernel, bias
        file["optimizer_weights/adam/kernel:0"] = np.zeros(1)
        file["optimizer/vars/0"] = np.zeros(1)


@pytest.mark.parametrize("form", ["published", "keras 2", "keras 3", "weights"])
def test_vgg(tmp_path, form):
    layers = arrays(VGG16)
    write(tmp_path / "vgg.h5", layers, form)
    file = weight_file.read(tmp_path / "vgg.h5")
    assert "--config.data.mean=0.485019608,0.457956863,0.407603922 " in file.note
    fields = state_dicts.identify(file.arrays)
    assert fields == {"name": "vgg16", "width": 1 / 16, "num_classes": 10}
    config = defaults("vgg16").model
    config.update(fields)
    params, _ = state_dicts.from_torch(file.arrays, config)
    # RGB here, BGR there.
    np.testing.assert_array_equal(
        params["features"][0][0]["conv"]["kernel"], layers["block1_conv1"][0][:, :, ::-1]
    )
    np.testing.assert_array_equal(
        params["features"][4][2]["conv"]["kernel"], layers["block5_conv3"][0]
    )
    for i, name in enumerate(("fc1", "fc2", "predictions")):
        np.testing.assert_array_equal(params["classifier"][i]["kernel"], layers[name][0])
        np.testing.assert_array_equal(params["classifier"][i]["bias"], layers[name][1])


@pytest.mark.parametrize(
    ("form", "epsilon"), [("today", 1.001e-5), ("keras 1", 1e-3), ("weights", 1.001e-5)]
)
def test_resnet(tmp_path, form, epsilon):
    """The networks of keras/src/applications/resnet.py and of Keras 1, at few channels."""
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    # Name today, in Keras 1, and in torch; shape of the kernel, or channels of the norm.
    layers = [
        ("conv1_conv", "conv1", "conv1", (7, 7, 3, 4)),
        ("conv1_bn", "bn_conv1", "bn1", 4),
        ("conv2_block1_0_conv", "res2a_branch1", "layer1.0.downsample.0", (1, 1, 4, 16)),
        ("conv2_block1_0_bn", "bn2a_branch1", "layer1.0.downsample.1", 16),
        ("conv4_block6_2_conv", "res4f_branch2b", "layer3.5.conv2", (3, 3, 8, 8)),
        ("conv4_block6_2_bn", "bn4f_branch2b", "layer3.5.bn2", 8),
        ("probs" if form == "today" else "predictions", "fc1000", "fc", (16, 5)),
    ]  # fmt: skip
    want, bias = {"layer2.0.conv1.stride": np.array(2)}, np.zeros(0)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        for i, (today, first, torch, shape) in enumerate(layers):
            is_norm, is_linear = isinstance(shape, int), torch == "fc"
            if is_norm:
                scale, shift, mean, var = arrays = rng.uniform(0.5, 2, (4, shape))
                names = ("gamma", "beta", "moving_mean", "moving_variance")
                olds = ("gamma", "beta", "running_mean", "running_std")
                want |= {f"{torch}.weight": scale, f"{torch}.bias": shift}
                want[f"{torch}.running_mean"] = mean - bias
                want[f"{torch}.running_var"] = var + epsilon - 1e-5
            else:
                kernel, bias = arrays = rng.normal(size=shape), rng.normal(size=shape[-1])
                names, olds = ("kernel", "bias"), ("W", "b")
                want[f"{torch}.weight"] = kernel.transpose((1, 0) if is_linear else (3, 2, 0, 1))
                if is_linear:
                    want["fc.bias"] = bias
            if form == "weights":
                file.create_group(f"layers/layer_{i}/vars").attrs["name"] = today
            for j, array in enumerate(arrays):
                path = {
                    "today": f"{today}/{today}/{names[j]}:0",
                    "keras 1": f"{first}/{first}_{olds[j]}:0",
                    "weights": f"layers/layer_{i}/vars/{j}",
                }[form]
                file[path] = array
    want["conv1.weight"] = want["conv1.weight"][:, ::-1]  # BGR in Keras
    got = weight_file.read(tmp_path / "w.h5")
    assert "--config.data.mean=0.485019608,0.457956863,0.407603922 " in got.note
    assert got.arrays.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_allclose(got.arrays[key], value, rtol=1e-12, err_msg=key)


def test_efficientnet(tmp_path):
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    stem, depthwise = rng.normal(size=(3, 3, 3, 4)), rng.normal(size=(3, 3, 4, 1))
    norm = [np.full(4, value) for value in (1.0, 2.0, 3.0, 4.0)]
    normalization = [np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225)), np.zeros(())]
    variables = {
        "normalization_1": normalization, "stem_conv": [stem], "block1b_dwconv": [depthwise],
        "block1a_dwconv": [depthwise + 1], "block2a_project_bn": norm,
    }  # fmt: skip
    with h5py.File(tmp_path / "w.h5", "w") as file:
        for i, (name, values) in enumerate(variables.items()):
            group = file.create_group(f"layers/layer_{i}/vars")
            group.attrs["name"] = name
            for j, value in enumerate(values):
                group[str(j)] = value
    got = weight_file.read(tmp_path / "w.h5")
    assert got.note.endswith("=0.485,0.456,0.406 --config.data.std=0.229,0.224,0.225")
    bn = "_blocks.2._bn2."
    want = {
        "_conv_stem.weight": np.moveaxis(stem, (3, 2), (0, 1)),
        "_blocks.0._depthwise_conv.weight": np.moveaxis(depthwise + 1, (2, 3), (0, 1)),
        "_blocks.1._depthwise_conv.weight": np.moveaxis(depthwise, (2, 3), (0, 1)),
        f"{bn}weight": norm[0], f"{bn}bias": norm[1],
        f"{bn}running_mean": norm[2], f"{bn}running_var": norm[3],
    }  # fmt: skip
    assert got.arrays.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_array_equal(got.arrays[key], value)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        # ResNet v2's
        ({"conv1_conv": (7, 7, 3, 4), "conv2_block1_preact_bn": (1,)}, "conv2_block1_preact_bn"),
        ({**VGG16, "dense_7": (10, 2)}, "other layers: dense_7"),
        # EfficientNetV2's
        ({"stem_conv": (3, 3, 3, 4), "block4a_dwconv2": (3, 3, 4, 1)}, "layers: block4a_dwconv2"),
    ],
)
def test_other_networks_are_refused(tmp_path, shapes, words):
    write(tmp_path / "w.h5", arrays(shapes), "weights")
    with pytest.raises(UserError, match=words) as caught:
        weight_file.read(tmp_path / "w.h5")
    assert "\n" not in str(caught.value)


def test_a_damaged_file(tmp_path):
    pytest.importorskip("h5py")
    (tmp_path / "w.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99))
    with pytest.raises(UserError, match="cut off or damaged"):
        weight_file.read(tmp_path / "w.h5")


def test_the_extra_is_named_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "w.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(UserError, match=r"needs h5py: pip install 'imagenet_jax\[keras\]'"):
        weight_file.read(tmp_path / "w.h5")
