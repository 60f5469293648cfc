"""Reading of keras.applications weights of VGG, ResNet and EfficientNet, with torch's names.

Files are written by `Model.save_weights` (.weights.h5), `Model.save` (.h5), or published by
keras.applications (.h5): see keras/src/saving/saving_lib.py and
keras/src/legacy/saving/legacy_h5_format.py. Layer names are those of
keras/src/applications/{vgg16,vgg19,resnet,efficientnet}.py; before 2019, ResNet-50 had Caffe's.
"""

import re
from pathlib import Path

import numpy as np

from imagenet_jax.errors import UserError, shorten
from imagenet_jax.models import resnet, vgg

Layers = dict[str, dict[str, np.ndarray]]  # layer name -> variable name -> array

# keras.applications.imagenet_utils, mode "caffe", in RGB order. For VGG and ResNet.
_CAFFE_MEAN = (123.68, 116.779, 103.939)
_EFFICIENTNET_STD = (0.229, 0.224, 0.225)
_PARTS = {
    "expand_conv": "_expand_conv", "expand_bn": "_bn0", "dwconv": "_depthwise_conv", "bn": "_bn1",
    "se_reduce": "_se_reduce", "se_expand": "_se_expand",
    "project_conv": "_project_conv", "project_bn": "_bn2",
}  # fmt: skip
_ENDS = {
    "stem_conv": "_conv_stem", "stem_bn": "_bn0", "top_conv": "_conv_head", "top_bn": "_bn1",
    "predictions": "_fc",
}  # fmt: skip
# First convolution of a ResNet, today and before 2019 -> epsilon of the norms.
_RESNET_EPSILON = {"conv1_conv": 1.001e-5, "conv1": 1e-3}
_RESNET_ENDS = {
    "conv1_conv": "conv1", "conv1_bn": "bn1", "predictions": "fc", "probs": "fc",
    "conv1": "conv1", "bn_conv1": "bn1", "fc1000": "fc",
}  # fmt: skip
# Variables by name. In .weights.h5 they are only numbered, so names follow from their count.
_VARIABLES = {
    "kernel": "weight", "depthwise_kernel": "weight", "W": "weight", "bias": "bias", "b": "bias",
    "gamma": "weight", "beta": "bias",
    "moving_mean": "running_mean", "moving_variance": "running_var",
    "running_mean": "running_mean", "running_std": "running_var",  # the variance, in Keras 1
}  # fmt: skip
_NUMBERED = {
    1: ("kernel",), 2: ("kernel", "bias"), 3: ("mean", "variance", "count"),
    4: ("gamma", "beta", "moving_mean", "moving_variance"),
}  # fmt: skip


def read(path: Path, origin: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return (state dict with torchvision's or efficientnet_pytorch's keys, notes).

    Raises UserError, naming `origin`, if h5py is missing or the model is not supported.
    """
    layers = _read_layers(path, origin)
    means, stds = [m / 255 for m in _CAFFE_MEAN], [1 / 255] * 3
    normalization = next((layers.pop(n) for n in [*layers] if n.startswith("normalization")), None)
    if normalization:  # in EfficientNet
        means = normalization["mean"].ravel().tolist()
        # Published files have the standard deviation here; a layer without weights takes its root.
        variance = normalization["variance"].ravel()
        published = np.allclose(variance, _EFFICIENTNET_STD)
        stds = (variance if published else np.sqrt(variance)).tolist()
    epsilon = next((_RESNET_EPSILON[name] for name in layers if name in _RESNET_EPSILON), None)
    if epsilon:
        names = _resnet_names(layers)
    elif "stem_conv" in layers:
        names = _efficientnet_names(layers)
    else:
        names = _vgg_names(layers)
    if unknown := [name for name in layers if name not in names]:
        raise UserError(
            f"{origin} is not a VGG, ResNet (v1) or EfficientNet of keras.applications; it has "
            f"other layers: {shorten(unknown)}"
        )
    state_dict = {}
    for layer, arrays in layers.items():
        for variable, array in arrays.items():
            if variable not in _VARIABLES:
                raise UserError(f"{origin}: unknown variable {variable} in layer {layer}")
            key = f"{names[layer]}.{_VARIABLES[variable]}"
            state_dict[key] = _to_torch(layer, array) if _VARIABLES[variable] == "weight" else array
    notes = [f"renamed {len(state_dict)} Keras arrays as in torch"]
    if epsilon:
        _fold_into_norms(state_dict, epsilon)
        state_dict |= resnet.V1_MARK
        notes.append("moved biases of convolutions into running means")
    first = "conv1.weight" if epsilon else "features.0.weight"
    if not normalization and first in state_dict:
        state_dict[first] = state_dict[first][:, ::-1]
        notes.append("reversed the first kernel from BGR, as Keras feeds this network, to RGB")
    mean, std = (",".join(f"{value:.9g}" for value in values) for values in (means, stds))
    notes.append(f"Keras' preprocessing: --config.data.mean={mean} --config.data.std={std}")
    return state_dict, notes


def _read_layers(path: Path, origin: str) -> Layers:
    """Return all arrays except those of the optimizer."""
    try:
        import h5py
    except ImportError as e:
        raise UserError(
            f"{origin} is a Keras file; reading it needs h5py: pip install 'imagenet_jax[keras]'"
        ) from e
    layers: Layers = {}

    def add(name: str, entry: object) -> None:
        if not isinstance(entry, h5py.Dataset) or name.startswith("optimizer"):
            return
        _, *groups, variable = f"/{name}".split("/")
        layer = groups[-1] if groups else ""
        if layer == "vars":  # .weights.h5, whose groups are named after classes
            layer = str(entry.parent.attrs.get("name", groups[-2] if groups[1:] else ""))
            number = len(entry.parent)
            variable = dict(enumerate(_NUMBERED.get(number, ()))).get(int(variable), variable)
        variable = variable.removesuffix(":0")
        variable = re.sub(r"^.*_(W|b|gamma|beta|running_(mean|std))(_\d+)?$", r"\1", variable)
        arrays = layers.setdefault(layer, {})
        if variable in arrays:
            raise UserError(f"{origin} has two layers {layer}")
        arrays[variable] = entry[()]

    try:
        with h5py.File(path) as file:
            file.visititems(add)
    except (OSError, RuntimeError) as e:  # as h5py raises
        raise UserError(f"{origin} cannot be read: it is cut off or damaged ({e})") from e
    return layers


def _to_torch(layer: str, array: np.ndarray) -> np.ndarray:
    """Return the kernel `array` in torch's layout."""
    if layer == "fc1" and array.ndim == 2 and len(array) % vgg.POOLED**2 == 0:  # (H, W, C) in Keras
        array = array.reshape(vgg.POOLED, vgg.POOLED, -1, array.shape[-1])
        return array.transpose(3, 2, 0, 1).reshape(array.shape[-1], -1)
    if layer.endswith("dwconv"):
        return array.transpose(2, 3, 0, 1)
    return array.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim))


def _vgg_names(layers: Layers) -> dict[str, str]:
    """Return torchvision's name of each layer of a VGG."""
    convolutions = sorted(n for n in layers if re.fullmatch(r"block\d_conv\d", n))
    names = {n: f"features.{2 * i + int(n[5]) - 1}" for i, n in enumerate(convolutions)}
    return names | {"fc1": "classifier.0", "fc2": "classifier.3", "predictions": "classifier.6"}


def _resnet_names(layers: Layers) -> dict[str, str]:
    """Return torchvision's name of each layer of a ResNet v1."""
    names = dict(_RESNET_ENDS)
    for layer in layers:
        if match := re.fullmatch(r"conv(\d)_block(\d+)_([0-3])_(conv|bn)", layer):
            stage, block, part = map(int, match.groups()[:3])
        elif match := re.fullmatch(r"(?:res|bn)(\d)([a-z])_branch(1|2[abc])", layer):
            stage, block, part = int(match[1]), ord(match[2]) - 96, "1abc".index(match[3][-1])
        else:
            continue
        is_norm = "bn" in layer
        end = f"{'bn' if is_norm else 'conv'}{part}" if part else f"downsample.{is_norm:d}"
        names[layer] = f"layer{stage - 1}.{block - 1}.{end}"
    return names


def _fold_into_norms(state_dict: dict[str, np.ndarray], epsilon: float) -> None:
    """Give a ResNet convolutions without bias, and norms whose epsilon is 1e-5 instead.

    Logits in evaluation stay the same: running means lose the bias, and running variances get the
    difference in epsilon.
    """
    for key in [key for key in state_dict if ".running_" in key]:
        convolution = key.replace("downsample.1", "downsample.0").replace("bn", "conv")
        if key.endswith("mean"):
            bias = state_dict.pop(f"{convolution.removesuffix('running_mean')}bias", 0.0)
            state_dict[key] = state_dict[key] - bias
        else:
            state_dict[key] = state_dict[key] + (epsilon - 1e-5)


def _efficientnet_names(layers: Layers) -> dict[str, str]:
    """Return efficientnet_pytorch's name of each layer of an EfficientNet."""
    found = [m for n in layers if (m := re.fullmatch(r"(block\d[a-z])_(\w+)", n))]
    blocks = sorted({m[1] for m in found})
    inner = {m[0]: f"_blocks.{blocks.index(m[1])}.{_PARTS[m[2]]}" for m in found if m[2] in _PARTS}
    return inner | _ENDS
