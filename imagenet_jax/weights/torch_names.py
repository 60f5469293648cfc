"""Names and layouts of torch state dicts: conversion to our parameters and back, without loss.

Convolutions are OIHW in torch and HWIO here, linear layers (out, in) and (in, out). A linear layer
that reads a flattened feature map reads (C, H, W) in torch and (H, W, C) here. Batch norm keeps its
values: both store the unbiased running variance. timm's ResNets have the same keys. timm's names of
mobile networks are those of `Family.timm_name`. timm's VGGs have a convolutional classifier and are
refused.

`rename` gives the weights of other libraries torchvision's names. Sources of their names: torch's
DataParallel, AveragedModel and compile; transformers' ResNet, ConvNeXt and ViT
(modeling_resnet.py, ...); mmpretrain's ImageClassifier; github.com/facebookresearch/ConvNeXt;
the published code of MoCo, SimSiam, SimCLR, DINO, SwAV and Barlow Twins.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from imagenet_jax import models
from imagenet_jax.errors import UserError
from imagenet_jax.models import families
from imagenet_jax.models.base import Config, Path

Tree = dict[Any, Any]  # nested dicts of arrays by module path, as nnx.to_pure_dict makes

# How to use weights without a classifier.
HEADLESS = "train one: python -m imagenet_jax.main --weights=FILE --config=FILE --workdir=DIR"
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias",
           "mean": "running_mean", "var": "running_var"}  # fmt: skip
_TRAILING_AXES = {"layer_scale": 2}  # of size 1, for height and width, that torch has
_TORCH_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}  # of kernels, by their number of dimensions
_COUNTER = "num_batches_tracked"  # of each batch norm in torch; unused at a fixed momentum

# The first convolution of a model, and what may stand before its name.
_TIMM_FIRST = "conv_stem"  # of timm's mobile networks
_FIRSTS = (_TIMM_FIRST, *(family.first for family in families()))
_FIRST = rf"(?:{'|'.join(map(re.escape, _FIRSTS))})(?:\.0)?\.weight$"
_PREFIX = r"((?:(?:model|net|network|backbone|resnet|vgg|encoder_q|base_encoder|encoder)\.)+)"
_HEAD = r"(?:fc|last_linear|classifier|head)\.(?:weight|bias)$"
_PART = re.compile(r"(.+)\[\d\]")  # name of a part of an array, see `join_parts`
_SHOWN = 3  # names in a message


class _Rule(NamedTuple):
    """Attributes:
    pattern: of the names to change; {0} stands for the first group of `where`.
    to: replacement of the match, which may contain {0}; None skips the entry.
    where: the rule applies only if this matches some name.
    unless: the rule does not apply if this, which may contain {0}, matches some name.
    """

    pattern: str
    to: str | Callable[[re.Match[str]], str] | None
    where: str = ""
    unless: str = ""


def _renamed(where: str, *changes: tuple[str, str | None]) -> list[_Rule]:
    """Return rules with one `where`, for names and parts of names that begin with each pattern.

    The last rule renames what `where` matches.
    """
    return [_Rule(rf"(?:^|(?<=\.)){pattern}", to, where=where) for pattern, to in changes]


# Blocks of ConvNeXt, under other names and under torchvision's.
_CONVNEXT = r"stages\.\d+\.(?:(?:blocks|layers)\.)?\d+\.(?:dwconv|conv_dw)\.weight$"
_CONVNEXT_PARTS = r"features\.\d+\.\d+\.(?:dwconv|conv_dw)\.weight$"
_TORCHVISION_CONVNEXT = r"features\.1\.0\.block\.0\.weight$"
_BLOCK = r"(?<=features)(\.\d+\.\d+)\."

_RULES = (
    # torch: DataParallel, DistributedDataParallel, AveragedModel and compile, of any submodule.
    _Rule(r"(?:^|(?<=\.))(?:(?:module|_orig_mod)\.)+", ""),
    # AveragedModel's counter of updates, a profiler's counters of operations.
    _Rule(r"(?:^|\.)(?:n_averaged|total_ops|total_params)$", None),
    # torchvision's published DenseNets
    _Rule(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),
    # ConvNeXt of its authors, of timm and of transformers.
    _Rule(r"(?:convnext\.)?encoder\.(?=stages\.)", "", where=_CONVNEXT),
    _Rule(r"(?:convnext\.)?embeddings\.patch_embeddings\.", "features.0.0.", where=_CONVNEXT),
    _Rule(r"(?:convnext\.)?embeddings\.layernorm\.", "features.0.1.", where=_CONVNEXT),
    _Rule(r"(?:downsample_layers\.0|stem)\.(?=[01]\.)", "features.0.", where=_CONVNEXT),
    _Rule(
        r"(?:downsample_layers\.(\d)|stages\.(\d)\.downsampl(?:e|ing_layer))\.(?=[01]\.)",
        lambda m: f"features.{2 * int(m[1] or m[2])}.",
        where=_CONVNEXT,
    ),
    _Rule(
        r"stages\.(\d+)\.(?:(?:blocks|layers)\.)?(?=\d+\.)",
        lambda m: f"features.{2 * int(m[1]) + 1}.",
        where=_CONVNEXT,
    ),
    _Rule(_BLOCK + "(?:gamma|layer_scale_parameter)$", r"\1.layer_scale", where=_CONVNEXT_PARTS),
    _Rule(_BLOCK + r"(?:layer)?norm\.", r"\1.block.2.", where=_CONVNEXT_PARTS),
    _Rule(_BLOCK + r"(?:pwconv|mlp\.fc)1\.", r"\1.block.3.", where=_CONVNEXT_PARTS),
    _Rule(_BLOCK + r"(?:pwconv|mlp\.fc)2\.", r"\1.block.5.", where=_CONVNEXT_PARTS),
    _Rule(_BLOCK + r"(?:dwconv|conv_dw)\.", r"\1.block.0."),
    _Rule(
        r"(?:^|(?<=\.))(?:convnext\.)?(?:head\.norm|norm|layernorm)\.(?=\w+$)",
        "classifier.0.",
        where=_TORCHVISION_CONVNEXT,
    ),
    _Rule(
        r"(?:^|(?<=\.))(?:head\.fc|head|classifier)\.(?=[a-z]+$)",
        "classifier.2.",
        where=_TORCHVISION_CONVNEXT,
    ),
    # transformers
    _Rule(r"^(?:resnet\.)?embedder\.embedder\.convolution\.", "conv1."),
    _Rule(r"^(?:resnet\.)?embedder\.embedder\.normalization\.", "bn1."),
    _Rule(r"^(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.", lambda m: f"layer{int(m[1]) + 1}."),
    _Rule(r"^(layer\d+\.\d+)\.shortcut\.convolution\.", r"\1.downsample.0."),
    _Rule(r"^(layer\d+\.\d+)\.shortcut\.normalization\.", r"\1.downsample.1."),
    _Rule(
        r"^(layer\d+\.\d+)\.layer\.(\d+)\.convolution\.", lambda m: f"{m[1]}.conv{int(m[2]) + 1}."
    ),
    _Rule(
        r"^(layer\d+\.\d+)\.layer\.(\d+)\.normalization\.", lambda m: f"{m[1]}.bn{int(m[2]) + 1}."
    ),
    _Rule(r"^classifier\.1\.", "fc.", where=r"^conv1\.weight$"),
    # ViT of torchvision, of DeiT III's authors and of transformers, in timm's names.
    *_renamed(
        r"(?:^|\.)conv_proj\.weight$",
        (r"class_token$", "cls_token"),
        (r"encoder\.pos_embedding$", "pos_embed"),
        (r"encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
        (r"encoder\.ln\.", "norm."),
        (r"self_attention\.in_proj_", "attn.qkv."),
        (r"self_attention\.out_proj\.", "attn.proj."),
        (r"ln_([12])\.", r"norm\1."),
        (r"mlp\.(?:0|linear_1)\.", "mlp.fc1."),
        (r"mlp\.(?:3|linear_2)\.", "mlp.fc2."),
        (r"heads\.head\.", "head."),
        (r"heads\.pre_logits\.", "pre_logits.fc."),
        (r"conv_proj\.", "patch_embed.proj."),
    ),
    *_renamed(r"(?:^|\.)blocks\.0\.gamma_1$", (r"gamma_([12])$", r"ls\1.gamma")),
    *_renamed(
        r"(?:^|\.)embeddings\.patch_embeddings\.projection\.weight$",
        (r"vit\.", ""),
        (r"embeddings\.cls_token$", "cls_token"),
        (r"embeddings\.position_embeddings$", "pos_embed"),
        (r"encoder\.layer\.(\d+)\.", r"blocks.\1."),
        (r"attention\.attention\.query\.(\w+)$", r"attn.qkv.\1[0]"),
        (r"attention\.attention\.key\.(\w+)$", r"attn.qkv.\1[1]"),
        (r"attention\.attention\.value\.(\w+)$", r"attn.qkv.\1[2]"),
        (r"attention\.output\.dense\.", "attn.proj."),
        (r"intermediate\.dense\.", "mlp.fc1."),
        (r"output\.dense\.", "mlp.fc2."),
        (r"layernorm_before\.", "norm1."),
        (r"layernorm_after\.", "norm2."),
        (r"layernorm\.", "norm."),
        (r"classifier\.", "head."),
        (r"pooler\.dense\.", None),
        (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    ),
    # mmpretrain
    _Rule(r"^head\.fc\.", "backbone.fc.", where=r"^backbone\.conv1\.weight$"),
    # Contrastive learning: this fc is a projection, not a classifier.
    _Rule(r"^(?:encoder_q|base_encoder)\.fc\.", None),
    _Rule(r"^encoder\.fc\.", None, where=r"^predictor\."),
    # A classifier beside a ResNet without one.
    _Rule(f"^(?={_HEAD})", "{0}", where=rf"^{_PREFIX}conv1\.weight$", unless=f"^{{0}}{_HEAD}"),
    # A network inside a larger module, whose other parts are not used.
    _Rule(r"^(?!{0})", None, where=f"^{_PREFIX}{_FIRST}"),
    _Rule(r"^{0}", "", where=f"^{_PREFIX}{_FIRST}"),
    # Other names of a ResNet's classifier; heads of self-supervised learning.
    _Rule(r"^(?:last_linear|classifier|head)\.(weight|bias)$", r"fc.\1", where=r"^conv1\.weight$"),
    _Rule(
        r"^(?:fc\.\d+|head\.mlp|head\.last_layer|projection_head|projector|prototypes|predictor)\.",
        None,
        where=r"^conv1\.weight$",
    ),
)


def from_torch(
    state_dict: Mapping[str, np.ndarray],
    config: Config,
    *,
    has_head: bool = True,
    origin: str = "state dict",
) -> tuple[Tree, Tree]:
    """Return (params, batch_stats) of the model of `config`, float32 NumPy arrays.

    Narrower floats are widened, wider ones rounded. Without `has_head`, neither the state dict nor
    the result has the classifier. Auxiliary heads that the model lacks are dropped, as torchvision
    does.

    Raises UserError, naming `origin`, if the state dict is of another model, has missing or unknown
    keys or other shapes, or holds anything but finite floats.
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
            _other_model(given, config, origin)
            or f"{origin} does not fit {config['name']} with {config['num_classes']} classes, "
            f"width {config['width']:g}: {'; '.join(reasons)}"
        )
    arrays = {}
    for key, (path, shape) in wanted.items():
        array = _check_floats(given[key], f"{origin}: {key}")
        if path[-1] == "kernel":
            if side := family.flattened.get(path[:-1]):  # as a convolution of this size
                array = array.reshape(len(array), -1, side, side)
            array = array.transpose(np.argsort(_TORCH_AXES[array.ndim]))
        arrays[path] = np.ascontiguousarray(array.reshape(shape))
    stats = {path: array for path, array in arrays.items() if path[-1] in ("mean", "var")}
    params = {path: array for path, array in arrays.items() if path not in stats}
    return unflatten_dict(params), unflatten_dict(stats)


def to_torch(params: Tree, batch_stats: Tree, config: Config) -> dict[str, np.ndarray]:
    """Return a state dict that torchvision's model of this name loads strictly: f32, counters 0.

    BiT, ViT and the ResNets that torchvision lacks are loaded by timm's models instead.
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
    return f"{_TIMM_FIRST}.weight" in state_dict


def torch_key(name: str, path: Path, *, is_timm: bool = False) -> str:
    """Return torchvision's name of an array of the model `name`; with `is_timm`, timm's.

    Of a ResNet, ("layer1", 0, "bn1", "scale") is layer1.0.bn1.weight.
    """
    family, leaf = models.family(name), str(path[-1])
    naming = family.timm_name if is_timm and family.timm_name else family.torch_name
    module = naming(name, path[:-1])
    return f"{module}.{_LEAVES.get(leaf, leaf)}" if module else leaf


def identify(
    state_dict: Mapping[str, np.ndarray], name: str = "", *, origin: str = "state dict"
) -> dict[str, Any]:
    """Return the fields of `config.model` that a state dict of torchvision's or timm's names fixes.

    These are name, num_classes (0 without a classifier), width, and fields of the family.
    `from_torch` checks whether all keys fit.

    Args:
      name: of the model that it must be; "": any.

    Raises UserError, naming `origin`, if no known model has such keys.
    """
    if name:
        models.family(name)  # raises UserError for an unknown name
    candidates = [fields for family in models.families() for fields in family.identify(state_dict)]
    if not candidates:
        keys = [key for key in state_dict if key.endswith("weight")] or list(state_dict)
        *titles, last = (family.model.__name__ for family in models.families())
        raise UserError(
            f"{origin} is of no {', '.join(titles)} or {last} in torchvision's layout; its keys "
            f"begin with {', '.join(keys[:3]) or 'nothing'}"
        )
    found = next((fields for fields in candidates if fields["name"] == name), candidates[0])
    twins = [fields["name"] for fields in candidates if fields == found | {"name": fields["name"]}]
    if len(twins) > 1 and not name:
        raise UserError(
            f"{origin} can be of {' or '.join(twins)}, whose arrays have the same names and shapes "
            "but whose padding or batch norm differs; say which it is: --model=NAME"
        )
    found = {**found, "num_classes": count_classes(state_dict, found["name"])}
    if name and found["name"] != name:
        raise UserError(f"{origin} does not fit {name}: it holds {describe(found)}")
    return found


def describe(fields: Mapping[str, Any]) -> str:
    """Return what `identify` found in words: "resnet18, width 0.125, stem small, 10 classes"."""
    words = [fields["name"], f"width {fields['width']:g}"]
    others = fields.keys() - {"name", "width", "num_classes"}
    words += [f"{field} {value}" for field, value in fields.items() if field in others]
    classes = fields["num_classes"]
    return ", ".join([*words, f"{classes} classes" if classes else "without a classifier"])


def count_classes(state_dict: Mapping[str, np.ndarray], name: str) -> int:
    """Return the classes of the head of a state dict of the model `name`; 0 if it has none."""
    path = (*models.family(name).head, "kernel")
    kernel = state_dict.get(torch_key(name, path, is_timm=_is_timm(state_dict)))
    return 0 if kernel is None or not kernel.ndim else len(kernel)


def _other_model(state_dict: Mapping[str, np.ndarray], config: Config, origin: str) -> str:
    """Return an error message if a state dict is of another model than `config`, else ""."""
    try:
        found = identify(state_dict)
    except UserError:
        return ""
    # Channels are rounded to whole numbers, and so are widths.
    same_width = abs(found["width"] - config["width"]) < 0.5 / 64
    different = [
        field
        for field, value in found.items()
        if config.get(field) != value and not (field == "width" and same_width)
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
    found = jax.tree_util.tree_flatten_with_path(trees)[0]
    return [(tuple(key.key for key in path[1:]), leaf) for path, leaf in found]


def _torch_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] == "kernel":
        return tuple(shape[i] for i in _TORCH_AXES[len(shape)])
    return (*shape, *[1] * _TRAILING_AXES.get(str(path[-1]), 0))


def _check_floats(array: np.ndarray, origin: str) -> np.ndarray:
    """Return the array in float32; UserError unless all are finite floating-point numbers."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(
            f"{origin} is of type {array.dtype}; weights must be floating-point numbers"
        )
    with np.errstate(over="ignore"):  # of float64
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{origin} holds NaN or numbers that are infinite in float32")
    return array


def rename(names: Iterable[str], *, origin: str) -> tuple[dict[str, str], str]:
    """Return ({name: its name in torchvision}, a note on what was renamed or skipped, or "").

    NAME[0], NAME[1], ... are parts of one array of torchvision or timm: see `join_parts`.

    Raises UserError, naming `origin`, if two entries get one name.
    """
    current = {name: name for name in names}
    skipped: list[str] = []
    for rule in _RULES:
        found = (re.search(rule.where, name) for name in current.values())
        where = next((match for match in found if match), None)
        if where is None:
            continue
        group = where[1] if where.groups() else ""
        pattern, unless = (
            text.replace("{0}", re.escape(group)) for text in (rule.pattern, rule.unless)
        )
        if unless and any(re.search(unless, name) for name in current.values()):
            continue
        if rule.to is None:
            matches = [old for old, name in current.items() if re.search(pattern, name)]
            skipped += matches
            current = {old: name for old, name in current.items() if old not in set(matches)}
        else:
            to = rule.to.replace("{0}", group) if isinstance(rule.to, str) else rule.to
            current = {old: re.sub(pattern, to, name) for old, name in current.items()}
    olds: dict[str, str] = {}
    for old, name in current.items():
        if name in olds:
            raise UserError(f"{origin} has two entries for {name}: {olds[name]} and {old}")
        olds[name] = old
    renamed = [(old, name) for old, name in current.items() if old != name]
    notes = []
    if renamed:
        notes.append(f"renamed {len(renamed)}, such as {renamed[0][0]} to {renamed[0][1]}")
    if skipped:
        notes.append(f"skipped {len(skipped)}: {shorten(skipped)}")
    return current, "; ".join(notes)


def join_parts(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays, those that `rename` named NAME[0], NAME[1], ... as one array NAME.

    Parts are joined along the first axis. Parts of different shapes stay apart, as no model has
    them.
    """
    parts: dict[str, list[str]] = {}
    for key in sorted(arrays):
        if match := _PART.fullmatch(key):
            parts.setdefault(match[1], []).append(key)
    joined = dict(arrays)
    for name, keys in parts.items():
        if arrays[keys[0]].ndim and len({arrays[key].shape for key in keys}) == 1:
            joined[name] = np.concatenate([joined.pop(key) for key in keys])
    return joined


def shorten(names: list[str]) -> str:
    """Return "a, b, c and 2 more"."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
