"""Which model a state dict belongs to, from its keys and shapes."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from imagenet_jax.errors import UserError
from imagenet_jax.models import check_name, resnet, vgg

_CHANNELS = 64  # of the first convolution at width 1, in both families
_FIRST = {"resnet": "conv1.weight", "vgg": "features.0.weight"}
_HEAD = {"resnet": "fc.weight", "vgg": "classifier.6.weight"}


def identify(
    state_dict: Mapping[str, np.ndarray], name: str = "", *, origin: str = "state dict"
) -> dict[str, Any]:
    """The fields of config.model that a state dict in torchvision's layout fixes.

    Args:
      name: of the model, where the caller knows it; otherwise depth and blocks are counted.

    Returns:
      name, num_classes and width, and of ResNets the stem. Whether every key fits, `from_torch`
      says.

    Raises UserError, naming `origin`, where the keys are of no model that can be built.
    """
    if name:
        check_name(name)
    found = name or _resnet_name(state_dict) or _vgg_name(state_dict)
    if not found:
        keys = [key for key in state_dict if key.endswith("weight")] or list(state_dict)
        raise UserError(
            f"{origin} is of no ResNet or VGG in torchvision's layout; its keys begin with "
            f"{', '.join(keys[:3]) or 'nothing'}"
        )
    family = "resnet" if found in resnet.VARIANTS else "vgg"
    for key, axes in ((_FIRST[family], 4), (_HEAD[family], 2)):
        if key not in state_dict or np.ndim(state_dict[key]) != axes:
            raise UserError(f"{origin} does not fit {found}: it has no {key} of {axes} axes")
    first = state_dict[_FIRST[family]]
    fields = {
        "name": found,
        "num_classes": len(state_dict[_HEAD[family]]),
        "width": len(first) / _CHANNELS,
    }
    if family == "resnet":
        fields["stem"] = "small" if first.shape[-1] == 3 else "imagenet"
    return fields


def _resnet_name(keys: Mapping[str, Any]) -> str:
    blocks = {m.groups() for k in keys if (m := re.match(r"layer(\d+)\.(\d+)\.", k))}
    depths = tuple(sum(stage == str(i) for stage, _ in blocks) for i in range(1, 5))
    kind = "bottleneck" if "layer1.0.conv3.weight" in keys else "basic"
    return next((n for n, variant in resnet.VARIANTS.items() if variant == (kind, depths)), "")


def _vgg_name(keys: Mapping[str, Any]) -> str:
    weights = [v for k, v in keys.items() if re.fullmatch(r"features\.\d+\.weight", k)]
    convolutions = sum(np.ndim(v) == 4 for v in weights)
    has_bn = "features.1.running_mean" in keys
    return next(
        (n for n, (d, bn) in vgg.VARIANTS.items() if (sum(d), bn) == (convolutions, has_bn)), ""
    )
