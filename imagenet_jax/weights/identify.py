"""Which model a state dict belongs to, from its keys and shapes."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from imagenet_jax.errors import UserError
from imagenet_jax.models import bit, check_name, resnet, vgg

_CHANNELS = 64  # of the first convolution at width 1, times BiT's factor
# The way out for weights without a classifier.
HEADLESS = "train one: python -m imagenet_jax.main --weights=FILE --config=FILE --workdir=DIR"
_FIRST_AND_LAST = {
    "resnet": ("conv1.weight", "fc.weight"),
    "vgg": ("features.0.weight", "classifier.6.weight"),
    "bit": ("stem.conv.weight", "head.fc.weight"),
}


def identify(
    state_dict: Mapping[str, np.ndarray], name: str = "", *, origin: str = "state dict"
) -> dict[str, Any]:
    """The fields of config.model that a state dict in torchvision's or timm's layout fixes.

    Args:
      name: of the model, where the caller knows it; otherwise depth and blocks are counted.

    Returns:
      name, num_classes and width, and of ResNets stem and norm; num_classes is 0 without a
      classifier. Whether every key fits, `from_torch` says.

    Raises UserError, naming `origin`, where the keys are of no model that can be built.
    """
    if name:
        check_name(name)
    found = name or _resnet_name(state_dict) or _vgg_name(state_dict) or _bit_name(state_dict)
    if not found:
        keys = [key for key in state_dict if key.endswith("weight")] or list(state_dict)
        raise UserError(
            f"{origin} is of no ResNet, VGG or BiT in torchvision's layout; its keys begin with "
            f"{', '.join(keys[:3]) or 'nothing'}"
        )
    family = "vgg" if found in vgg.VARIANTS else "bit" if found in bit.VARIANTS else "resnet"
    first_key, last_key = _FIRST_AND_LAST[family]
    first, last = state_dict.get(first_key), state_dict.get(last_key)
    if first is None or first.ndim != 4 or (last is not None and last.ndim not in (2, 4)):
        key = first_key if first is None or first.ndim != 4 else last_key
        held = describe(state_dict) if name else ""
        raise UserError(
            f"{origin} does not fit {found}: "
            + (f"it holds {held}" if held else f"it has no {key} that does")
        )
    fields: dict[str, Any] = {
        "name": found,
        "num_classes": 0 if last is None else len(last),
        "width": len(first) / _CHANNELS,
    }
    if family == "bit":
        fields["width"] /= bit.VARIANTS[found][1]
    if family == "resnet":
        fields["stem"] = "small" if first.shape[-1] == 3 else "imagenet"
        has_statistics = any(key.endswith("running_mean") for key in state_dict)
        fields["norm"] = "batch" if has_statistics else "group"
    return fields


def describe(state_dict: Mapping[str, np.ndarray]) -> str:
    """Which model a state dict is of, in words; "" if it is of none that can be built."""
    try:
        fields = identify(state_dict)
    except UserError:
        return ""
    name, classes = fields.pop("name"), fields.pop("num_classes")
    head = f"with num_classes={classes}" if classes else "without a classifier"
    return f"{name} {head}, " + ", ".join(f"{field}={value}" for field, value in fields.items())


def other_model(state_dict: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> str:
    """What a state dict is of, as a phrase, if that is not the model of `config`; else ""."""
    held = describe(state_dict)
    if not held:
        return ""
    found = identify(state_dict)
    backbone = not found["num_classes"]
    # A width is rounded to whole channels.
    same_width = abs(found.pop("width") - config["width"]) < 0.5 / _CHANNELS
    if same_width and all(config.get(field) == value for field, value in found.items()):
        return ""
    return f"it holds {held}" + (f"; {HEADLESS}" if backbone else "")


def _blocks(keys: Mapping[str, Any], pattern: str) -> tuple[int, ...]:
    """Blocks per stage, of the (stage, block) pairs that `pattern` finds in the keys."""
    pairs = {tuple(map(int, m.groups())) for k in keys if (m := re.match(pattern, k))}
    stages = [stage for stage, _ in sorted(pairs)]
    return tuple(stages.count(stage) for stage in dict.fromkeys(stages))


def _resnet_name(keys: Mapping[str, Any]) -> str:
    kind = "bottleneck" if "layer1.0.conv3.weight" in keys else "basic"
    wanted = (kind, _blocks(keys, r"layer(\d+)\.(\d+)\."))
    return next((name for name, variant in resnet.VARIANTS.items() if variant == wanted), "")


def _vgg_name(keys: Mapping[str, np.ndarray]) -> str:
    weights = [v for k, v in keys.items() if re.fullmatch(r"features\.\d+\.weight", k)]
    convolutions = sum(v.ndim == 4 for v in weights)
    has_bn = "features.1.running_mean" in keys
    return next(
        (n for n, (d, bn) in vgg.VARIANTS.items() if (sum(d), bn) == (convolutions, has_bn)), ""
    )


def _bit_name(keys: Mapping[str, np.ndarray]) -> str:
    depths = _blocks(keys, r"stages\.(\d+)\.blocks\.(\d+)\.")
    fits = {name: factor for name, (d, factor) in bit.VARIANTS.items() if d == depths}
    first = keys.get("stem.conv.weight")
    exact = [n for n, f in fits.items() if first is not None and len(first) == f * _CHANNELS]
    # A wide network and a narrow one of a larger width have the same keys and shapes.
    return next(iter([*exact, *fits]), "")
