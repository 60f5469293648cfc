"""torchvision state dicts to our parameters and back, exactly.

Layouts: convolutions OIHW <-> HWIO, linear (out, in) <-> (in, out), and VGG's first linear layer,
which reads a flattened (C, 7, 7) feature map there and (7, 7, C) here. Batch norm keeps its values:
both store the unbiased running variance (see norm.py). timm's ResNets of these names have the same
keys and are read alike; its VGGs have a convolutional classifier and are refused, naming the keys.
weight_names.py renames the keys of other libraries.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from imagenet_jax import models, strict_json
from imagenet_jax.errors import UserError, expand_user, one_line
from imagenet_jax.files import write_atomically
from imagenet_jax.models import vgg
from imagenet_jax.weights.identify import other_model
from imagenet_jax.weights.weight_file_kind import kind
from imagenet_jax.weights.weight_names import shorten

StateDict = dict[str, np.ndarray]
Tree = dict[Any, Any]  # nested dicts of arrays by module path, as nnx.to_pure_dict makes
Config: TypeAlias = ConfigDict | Mapping[str, Any]  # a config.model

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias",
           "mean": "running_mean", "var": "running_var"}  # fmt: skip
_COUNTER = "num_batches_tracked"  # torch's, of each batch norm; it affects nothing at momentum 0.1
_CLASS_NAMES = "class_names"  # entry of a .safetensors file's metadata: a JSON list


def from_torch(
    state_dict: Mapping[str, np.ndarray],
    config: Config,
    *,
    has_head: bool = True,
    origin: str = "state dict",
) -> tuple[Tree, Tree]:
    """(params, batch_stats) of the model of `config`, float32 NumPy arrays.

    Half-precision weights are widened, wider ones rounded to float32. Without `has_head`, neither
    the state dict nor the result has the classifier.

    Raises UserError, naming `origin`, for another model, for missing keys, keys that the model does
    not have, shapes that differ, and arrays that are not finite floats.
    """
    head = models.head(config["name"])
    wanted = {
        torch_key(config, path): (path, leaf)
        for path, leaf in _leaves(_abstract(config))
        if has_head or path[: len(head)] != head
    }
    given = {k: np.asarray(v) for k, v in state_dict.items() if not k.endswith(_COUNTER)}
    problems = {
        "missing": [k for k in wanted if k not in given],
        "not of this model": [k for k in given if k not in wanted],
        "of another shape": [
            f"{k} {given[k].shape}, not {_torch_shape(path, leaf.shape)}"
            for k, (path, leaf) in wanted.items()
            if k in given and given[k].shape != _torch_shape(path, leaf.shape)
        ],
    }
    if any(problems.values()):
        reasons = [f"{len(k)} {what}: {shorten(k)}" for what, k in problems.items() if k]
        raise UserError(
            f"{origin} does not fit {config['name']} with num_classes={config['num_classes']}, "
            f"width={config['width']}: {other_model(given, config) or '; '.join(reasons)}"
        )
    arrays = {
        p: _to_ours(p, given[k], leaf.shape, f"{origin}: {k}") for k, (p, leaf) in wanted.items()
    }
    stats = {path: array for path, array in arrays.items() if path[-1] in ("mean", "var")}
    params = {path: array for path, array in arrays.items() if path not in stats}
    return unflatten_dict(params), unflatten_dict(stats)


def to_torch(params: Tree, batch_stats: Tree, config: Config) -> StateDict:
    """The state dict that torchvision's model of this name loads strictly: f32, counters 0."""
    state_dict: StateDict = {}
    for path, leaf in _leaves((params, batch_stats)):
        key = torch_key(config, path)
        state_dict[key] = _to_theirs(path, np.asarray(leaf))
        if path[-1] == "var":
            state_dict[key.replace("running_var", _COUNTER)] = np.zeros((), np.int64)
    return state_dict


def torch_key(config: Config, path: tuple[Any, ...]) -> str:
    """torchvision's name of our variable: ("layer1", 0, "bn1", "scale") -> layer1.0.bn1.weight."""
    *module, leaf = path
    if module[0] == "features":  # one flat list there, in which ReLUs and pools count too
        depths, has_bn = vgg.VARIANTS[str(config["name"])]
        _, stage, unit, kind = module
        per_unit = 3 if has_bn else 2
        index = sum(depths[:stage]) * per_unit + stage + unit * per_unit + (kind == "bn")
        module = ["features", index]
    elif module[0] == "classifier":  # linear, ReLU, dropout, ...
        module = ["classifier", module[1] * 3]
    return ".".join(map(str, [*module, _LEAVES[leaf]]))


def load_class_names(path: str | Path) -> tuple[str, ...]:
    """Names by label that `save` stored in a .safetensors file; () where there are none."""
    from safetensors import safe_open

    path = expand_user(path)
    if kind(path) != "safetensors":
        return ()
    with safe_open(path, framework="numpy") as file:
        stored = (file.metadata() or {}).get(_CLASS_NAMES, "[]")
    try:
        names = strict_json.loads(stored)
    except ValueError:  # somebody else's entry of that name
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def save(state_dict: StateDict, path: str | Path, class_names: tuple[str, ...] = ()) -> None:
    """Write a .safetensors file, whole or not at all, with class names in its metadata.

    Raises UserError for another suffix, and where the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors import numpy as safetensors_numpy

    path = expand_user(path)
    if path.suffix != ".safetensors":
        raise UserError(f"weights are written as .safetensors, not {path.name}")
    if not path.parent.is_dir():
        raise UserError(f"weights file {path}: the folder {path.parent} does not exist")
    # safetensors writes the buffer behind an array, whatever its strides; ascontiguousarray would
    # give torch's counters, which have no axis, one.
    arrays = {k: np.asarray(v, order="C") for k, v in state_dict.items()}
    metadata = {_CLASS_NAMES: strict_json.dumps(class_names)} if class_names else None
    try:
        # save_file would make the file readable by its owner only; here the umask decides.
        write_atomically(path, safetensors_numpy.save(arrays, metadata))
    except (OSError, SafetensorError) as e:
        raise UserError(f"weights file {path} cannot be written: {one_line(e)}") from e


def _abstract(config: Config) -> tuple[Tree, Tree]:
    model = nnx.eval_shape(lambda: models.build(config, rngs=nnx.Rngs(0)))
    params, batch_stats = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def _leaves(trees: tuple[Tree, Tree]) -> list[tuple[tuple[Any, ...], Any]]:
    found = jax.tree_util.tree_flatten_with_path(trees)[0]
    return [(tuple(key.key for key in path[1:]), leaf) for path, leaf in found]


def _torch_shape(path: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] != "kernel":
        return shape
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def _to_ours(
    path: tuple[Any, ...], array: np.ndarray, shape: tuple[int, ...], origin: str
) -> np.ndarray:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(
            f"{origin} is of type {array.dtype}; weights must be floating-point numbers"
        )
    with np.errstate(over="ignore"):  # of float64
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{origin} holds NaN or numbers that are infinite in float32")
    if path[-1] != "kernel":
        return array
    if array.ndim == 4:
        return np.ascontiguousarray(array.transpose(2, 3, 1, 0))
    if path[:2] == ("classifier", 0):
        side = vgg.POOLED
        return array.reshape(len(array), -1, side, side).transpose(2, 3, 1, 0).reshape(shape)
    return np.ascontiguousarray(array.T)


def _to_theirs(path: tuple[Any, ...], array: np.ndarray) -> np.ndarray:
    if path[-1] != "kernel":
        return array
    if array.ndim == 4:
        return np.ascontiguousarray(array.transpose(3, 2, 0, 1))
    if path[:2] == ("classifier", 0):
        side, outputs = vgg.POOLED, array.shape[1]
        return array.reshape(side, side, -1, outputs).transpose(3, 2, 0, 1).reshape(outputs, -1)
    return np.ascontiguousarray(array.T)
