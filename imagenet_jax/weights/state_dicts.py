"""Conversion between torch state dicts and our parameters, without loss.

Convolution kernels are OIHW in torch and HWIO here; linear kernels are (out, in) and (in, out). A
linear layer that reads a flattened feature map reads (C, H, W) in torch and (H, W, C) here. Batch
norm needs no conversion: both store the unbiased running variance.

The keys are torchvision's. timm's ResNets have the same keys. timm's keys of MobileNets and
EfficientNets are read through `Family.timm_name`. timm's VGGs, whose classifier is convolutional,
are refused.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from imagenet_jax import models
from imagenet_jax.errors import UserError, shorten
from imagenet_jax.models.base import Config, Path
from imagenet_jax.weights.library_names import TIMM_FIRST

Tree = dict[Any, Any]  # nested dicts of arrays by module path, as nnx.to_pure_dict makes

# How to use weights without a classifier.
HEADLESS = "train one: python -m imagenet_jax.main --weights=FILE --config=FILE --workdir=DIR"
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias",
           "mean": "running_mean", "var": "running_var"}  # fmt: skip
_TRAILING_AXES = {"layer_scale": 2}  # axes of size 1 that only torch has, for height and width
_TORCH_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}  # number of kernel axes -> order of our axes in torch
_COUNTER = "num_batches_tracked"  # of each batch norm in torch; unused with a fixed momentum


def from_torch(
    state_dict: Mapping[str, np.ndarray],
    config: Config,
    *,
    has_head: bool = True,
    origin: str = "state dict",
) -> tuple[Tree, Tree]:
    """Return (params, batch_stats) of the model of `config`, as float32 NumPy arrays.

    float16 and bfloat16 are widened, and float64 is rounded. If `has_head` is False, neither the
    state dict nor the result has the classifier. Auxiliary heads that the model lacks are dropped,
    as in torchvision.

    Raises UserError, naming `origin`, if the state dict is of another model, has missing or unknown
    keys or other shapes, or contains anything but finite floating-point numbers.
    """
    family = models.family(config["name"])
    is_timm = _is_timm(state_dict)
    wanted = {
        torch_key(config["name"], path, is_timm=is_timm): (path, leaf.shape)
        for path, leaf in _leaves(models.outline(config)[1:])
        if has_head or not family.in_heads(path)
    }
    dropped = tuple(f"{family.torch_name(config['name'], path)}." for path in family.auxiliary)
    if any(key.startswith(dropped) for key in wanted):
        dropped = ()
    constants = family.constants(config["name"])
    given = {
        key: np.asarray(value)
        for key, value in state_dict.items()
        if not key.endswith(_COUNTER) and key not in constants and not key.startswith(dropped)
    }
    for key, (path, shape) in wanted.items():
        if key in given:
            given[key] = family.fit(path, given[key], shape)
    _check_keys_and_shapes(given, wanted, config, origin, has_head=has_head)
    arrays = {}
    for key, (path, shape) in wanted.items():
        array = _to_float32(given[key], f"{origin}: {key}")
        if path[-1] == "kernel":
            if side := family.flattened.get(path[:-1]):  # as a convolution of this size
                array = array.reshape(len(array), -1, side, side)
            array = array.transpose(np.argsort(_TORCH_AXES[array.ndim]))
        arrays[path] = np.ascontiguousarray(array.reshape(shape))
    stats = {path: array for path, array in arrays.items() if path[-1] in ("mean", "var")}
    params = {path: array for path, array in arrays.items() if path not in stats}
    return unflatten_dict(params), unflatten_dict(stats)


def _check_keys_and_shapes(
    given: Mapping[str, np.ndarray],
    wanted: Mapping[str, tuple[Path, tuple[int, ...]]],
    config: Config,
    origin: str,
    *,
    has_head: bool,
) -> None:
    """Raise UserError unless `given` has the keys of `wanted`, in torch's shapes.

    `wanted` has the path and shape of each array in the model.
    """
    misshapen = [
        f"{key} {given[key].shape}, not {expected}"
        for key, (path, shape) in wanted.items()
        if key in given
        and given[key].shape != (expected := _torch_shape(path, shape))
        and (path[-1] not in _TRAILING_AXES or given[key].shape != shape)  # as in timm
    ]
    problems = (
        ("missing", [key for key in wanted if key not in given]),
        ("not of this model", [key for key in given if key not in wanted]),
        ("of another shape", misshapen),
    )
    if any(keys for _, keys in problems):
        reasons = (f"{len(keys)} {what}: {shorten(keys)}" for what, keys in problems if keys)
        raise UserError(
            _describe_mismatch(given, config, origin, has_head=has_head)
            or f"{origin} does not fit {config['name']} with {config['num_classes']} classes, "
            f"width {config['width']:g}: {'; '.join(reasons)}"
        )


def to_torch(params: Tree, batch_stats: Tree, config: Config) -> dict[str, np.ndarray]:
    """Return a float32 state dict that torchvision's model loads with strict=True; counters are 0.

    For BiT, ViT and the ResNets that torchvision does not have, it is timm's model that loads it.
    """
    family = models.family(config["name"])
    state_dict = dict(family.constants(config["name"]))
    for path, leaf in _leaves((params, batch_stats)):
        key, array = torch_key(config["name"], path), np.asarray(leaf)
        shape = _torch_shape(path, array.shape)
        if path[-1] == "kernel":
            if side := family.flattened.get(path[:-1]):
                array = array.reshape(side, side, -1, array.shape[-1])
            array = array.transpose(_TORCH_AXES[array.ndim])
        state_dict[key] = np.ascontiguousarray(array.reshape(shape))
        if path[-1] == "var":
            state_dict[key.replace("running_var", _COUNTER)] = np.zeros((), np.int64)
    return state_dict


def _is_timm(state_dict: Mapping[str, np.ndarray]) -> bool:
    return f"{TIMM_FIRST}.weight" in state_dict


def torch_key(name: str, path: Path, *, is_timm: bool = False) -> str:
    """Return torchvision's key, or timm's if `is_timm`, of the array at `path` in the model `name`.

    In a ResNet, ("layer1", 0, "bn1", "scale") becomes layer1.0.bn1.weight.
    """
    family, leaf = models.family(name), str(path[-1])
    naming = family.timm_name if is_timm and family.timm_name else family.torch_name
    module = naming(name, path[:-1])
    return f"{module}.{_LEAVES.get(leaf, leaf)}" if module else leaf


def identify(
    state_dict: Mapping[str, np.ndarray], name: str = "", *, origin: str = "state dict"
) -> dict[str, Any]:
    """Return the fields of `config.model` that can be read from a state dict.

    These are name, num_classes (0 without a classifier), width, and fields of the family. Only some
    keys are looked at; `from_torch` checks all of them.

    Args:
      state_dict: arrays by torchvision's or timm's keys.
      name: the model that it must be; "": any.

    Raises UserError, naming `origin`, if no model, or only one other than `name`, has such keys, or
    if several have and `name` is "".
    """
    if name:
        models.family(name)  # raises UserError for an unknown name
    candidates = [
        fields
        for family in models.families()
        # Variants of a family may differ only in width.
        for fields in sorted(family.identify(state_dict), key=lambda f: abs(f["width"] - 1))
    ]
    if not candidates:
        keys = [key for key in state_dict if key.endswith("weight")] or list(state_dict)
        *titles, last = (family.model.__name__ for family in models.families())
        raise UserError(
            f"{origin} is not a state dict of {', '.join(titles)} or {last} in torchvision's "
            f"layout; its first keys: {', '.join(keys[:3]) or 'none'}"
        )
    found = next((fields for fields in candidates if fields["name"] == name), candidates[0])
    twins = [fields["name"] for fields in candidates if fields == found | {"name": fields["name"]}]
    if len(twins) > 1 and not name:
        raise UserError(
            f"{origin} fits {' and '.join(twins)}, whose arrays have the same names and shapes "
            "but whose padding or batch norm differs; choose one: --model=NAME"
        )
    found = {**found, "num_classes": count_classes(state_dict, found["name"])}
    if name and found["name"] != name:
        raise UserError(f"{origin} does not fit {name}: it holds {describe(found)}")
    return found


def describe(fields: Mapping[str, Any]) -> str:
    """Return the result of `identify` as text: "resnet18, width 0.125, stem small, 10 classes"."""
    words = [fields["name"], f"width {fields['width']:g}"]
    others = fields.keys() - {"name", "width", "num_classes"}
    words += [f"{field} {value}" for field, value in fields.items() if field in others]
    classes = fields["num_classes"]
    return ", ".join([*words, f"{classes} classes" if classes else "without a classifier"])


def count_classes(state_dict: Mapping[str, np.ndarray], name: str) -> int:
    """Return the number of classes in a state dict of the model `name`; 0 without a classifier."""
    path = (*models.family(name).head, "kernel")
    kernel = state_dict.get(torch_key(name, path, is_timm=_is_timm(state_dict)))
    return 0 if kernel is None or not kernel.ndim else len(kernel)


def _describe_mismatch(
    state_dict: Mapping[str, np.ndarray], config: Config, origin: str, *, has_head: bool
) -> str:
    """Return an error message if a state dict is of a known model that is not `config`, else "".

    Without `has_head`, any number of classes is right.
    """
    try:
        found = identify(state_dict)
    except UserError:
        return ""
    # Channels are rounded to whole numbers, and so are widths.
    same_width = abs(found["width"] - config["width"]) < 0.5 / 64
    different = [
        field
        for field, value in found.items()
        if config.get(field) != value
        and not (field == "width" and same_width)
        and (field != "num_classes" or has_head)
    ]
    if not different:
        return ""
    message = f"{origin} does not fit config.model: it holds {describe(found)}"
    if not found["num_classes"]:
        return f"{message}; {HEADLESS}"
    ours = ", ".join(f"{field}={config[field]}" for field in different if field in config)
    flags = " ".join(f"--config.model.{field}={found[field]}" for field in different)
    return f"{message}; config.model has {ours}: set {flags}"


def _leaves(trees: tuple[Tree, Tree]) -> list[tuple[Path, Any]]:
    """Return (path, leaf) of each array in params and batch_stats."""
    found = jax.tree_util.tree_flatten_with_path(trees)[0]
    return [(tuple(key.key for key in path[1:]), leaf) for path, leaf in found]


def _torch_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that torch gives to the array at `path`, which has `shape` here."""
    if path[-1] == "kernel":
        return tuple(shape[i] for i in _TORCH_AXES[len(shape)])
    return (*shape, *[1] * _TRAILING_AXES.get(str(path[-1]), 0))


def _to_float32(array: np.ndarray, origin: str) -> np.ndarray:
    """Return `array` in float32. Raises UserError unless it has only finite floats."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(
            f"{origin} is of type {array.dtype}; weights must be floating-point numbers"
        )
    with np.errstate(over="ignore"):  # float64 may overflow; the check below reports it
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{origin} contains NaN or numbers that are infinite in float32")
    return array
