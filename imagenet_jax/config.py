"""Configs in and out: load a file, apply overrides, check, write as JSON, compare."""

import ast
import difflib
import importlib.util
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imagenet_jax import defaults, models
from imagenet_jax.errors import UserError

# Fields that say how a run is carried out, not what is computed: they may change on resumption.
OPERATIONAL = (
    "resume_with_changes", "data.path", "data.threads", "data.workers", "data.prefetch_mb",
    "log.every_steps", "log.tensorboard", "checkpoint.keep", "eval.batch_size", "mesh.fsdp",
)  # fmt: skip

_CHOICES = {
    "data.source": ("auto", "tfds", "folder", "digits", "synthetic"),
    "data.interpolation": ("bilinear", "bicubic"),
    "data.resampling": ("antialias", "fast"),
    "data.undecodable": ("stop", "skip"),
    "data.balance": ("none", "over", "under"),
    "data.remainder": ("carry", "drop"),
    "augment.auto": ("none", "randaugment", "randaugment_timm", "trivialaugment"),
    "augment.auto_interpolation": ("nearest", "bilinear"),
    "augment.erase_fill": ("zero", "noise"),
    "optim.name": ("sgd", "adam", "adamw", "lars", "lamb"),
    "loss.name": ("softmax", "bce"),
    "ema.form": ("constant", "torchvision", "timm"),
    "loss.bce_reduction": ("mean", "sum"),
    "optim.lr_scaling": ("linear", "sqrt", "none"),
    "optim.schedule": ("step", "cosine", "polynomial", "constant"),
    "optim.weight_decay_form": ("l2", "decoupled"),
    "checkpoint.best_metric": ("top1", "top5", "loss"),
}
_POSITIVE = (
    "optim.layer_decay",
    "batch_size", "epochs", "augment.image_size", "augment.size_multiple", "data.repeats",
    "ema.every_steps", "ema.gamma", "ema.power",
    "optim.reference_batch_size", "optim.accumulate", "mesh.fsdp", "eval.batch_size",
    "eval.resize", "eval.image_size", "checkpoint.keep", "log.every_steps", "data.prefetch_mb",
)  # fmt: skip
_NOT_NEGATIVE = (
    "optim.freeze_epochs",
    "optim.peak_lr", "optim.warmup_epochs", "optim.warmup_start_lr", "optim.end_lr",
    "optim.weight_decay", "optim.clip_norm", "optim.l1", "optim.trust_coefficient",
    "eval.every_epochs", "checkpoint.every_epochs",
    "data.threads", "data.workers", "seed", "augment.lighting", "augment.mixup", "augment.cutmix",
    "augment.rand_deviation",
)  # fmt: skip
_SHARES = ("augment.erase", "augment.mix_probability", "augment.mix_switch")
_BELOW_ONE = ("data.holdout",
    "loss.label_smoothing", "loss.bce_threshold", "ema.decay", "optim.momentum", "optim.b1",
    "optim.b2",
)  # fmt: skip

# field: (the choice it belongs to, the values of it that read it); with others it must stay at its
# default.
_READ_BY = {
    "optim.nesterov": ("optim.name", ("sgd", "lars")),
    "optim.trust_coefficient": ("optim.name", ("lars",)),
    "optim.b1": ("optim.name", ("adam", "adamw", "lamb")),
    "optim.b2": ("optim.name", ("adam", "adamw", "lamb")),
    "optim.eps": ("optim.name", ("adam", "adamw", "lamb")),
    "optim.weight_decay_form": ("optim.name", ("sgd", "adam", "adamw")),
    "optim.freeze_epochs": ("optim.name", ("sgd", "adam", "adamw")),
    "loss.bce_reduction": ("loss.name", ("bce",)),
    "loss.bce_threshold": ("loss.name", ("bce",)),
    "ema.gamma": ("ema.form", ("timm",)),
    "ema.power": ("ema.form", ("timm",)),
}


def load(spec: str, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """The config of `path.py` or `path.py:arg`, with (field, text) overrides, checked and locked.

    Raises UserError for a missing or failing file, an unknown field, a wrong type, a bad value.
    """
    path, _, arg = spec.partition(":")
    file = Path(path)
    if not file.is_file():
        raise UserError(f"config file {path!r} does not exist; the shipped ones are in configs/")
    module_spec = importlib.util.spec_from_file_location(file.stem, file)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"config file {path!r} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(module_spec)
    root = str(file.resolve().parents[1])
    try:
        sys.path.insert(0, root)  # `from configs import resnet50`, wherever the user stands
        module_spec.loader.exec_module(module)
    except Exception as e:
        raise UserError(f"config file {path!r} fails: {type(e).__name__}: {e}") from e
    finally:
        sys.path.remove(root)
    if not hasattr(module, "get_config"):
        raise UserError(f"config file {path!r} defines no get_config(arg='')")
    try:
        config = module.get_config(arg) if arg else module.get_config()
    except UserError:
        raise
    except Exception as e:
        reason = e.args[0] if e.args else e
        raise UserError(
            f"config {spec!r}: get_config fails: {type(e).__name__}: {_one_line(reason)}"
        ) from e
    for field, text in overrides:
        override(config, field, text)
    return check(config)


def override(config: ConfigDict, field: str, text: str) -> None:
    """Set a dotted `field` from command-line `text`, in the type that the field has."""
    *parents, leaf = field.split(".")
    node = config
    for name in parents:
        node = _child(node, name, field, config)
        if not isinstance(node, ConfigDict):
            raise UserError(f"config.{field}: {name!r} is a value, it has no fields")
    old = _child(node, leaf, field, config)
    if isinstance(old, ConfigDict):
        raise UserError(f"config.{field} is a group; set one of its fields: {', '.join(old)}")
    node[leaf] = _parse(field, old, text)


def check(config: ConfigDict) -> ConfigDict:
    """The config, locked, if each field is present and every value is one that can be meant."""
    present = flatten(config)
    # The model first: which fields the config has depends on its name.
    models.check(config.get("model", {}))
    expected = flatten(defaults.defaults(present["model.name"]))
    for field in present:
        if field not in expected:
            raise UserError(f"config.{field} is not a field{_nearest(field, expected)}")
    for field, default in expected.items():
        if field not in present:
            raise UserError(f"config.{field} is missing; start from imagenet_jax.defaults")
        if not _same_type(default, present[field]):
            raise UserError(
                f"config.{field} = {present[field]!r} should be {_kind(default)}, like {default!r}"
            )
    _check_values(present, expected)
    return config.lock()


def _check_values(value: dict[str, Any], default: dict[str, Any]) -> None:
    for field, choices in _CHOICES.items():
        if value[field] not in choices:
            near = difflib.get_close_matches(value[field], choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"config.{field} = {value[field]!r}: use {' | '.join(choices)}{hint}")
    for field in _POSITIVE:
        if not value[field] > 0:
            raise UserError(f"config.{field} = {value[field]!r} must be above 0")
    for field in _NOT_NEGATIVE:
        if not value[field] >= 0:
            raise UserError(f"config.{field} = {value[field]!r} must not be negative")
    for field in _BELOW_ONE:
        if not 0 <= value[field] < 1:
            raise UserError(f"config.{field} = {value[field]!r} must be at least 0 and below 1")
    _check_augment(value)
    for field in ("augment.crop_scale", "augment.crop_ratio"):
        if len(value[field]) != 2 or not 0 < value[field][0] <= value[field][1]:
            raise UserError(
                f"config.{field} = {value[field]!r} must be (low, high), 0 < low <= high"
            )
    if value["augment.crop_scale"][1] > 1:
        raise UserError("config.augment.crop_scale: a crop cannot be larger than its image (1.0)")
    _check_resolution(value)
    for field in ("data.mean", "data.std"):
        if len(value[field]) != 3:
            raise UserError(f"config.{field} = {value[field]!r} must have 3 values, for R, G and B")
    weights = value["loss.class_weights"]
    if weights and (len(weights) != value["model.num_classes"] or min(weights) <= 0):
        raise UserError(
            f"config.loss.class_weights must be {value['model.num_classes']} numbers above 0, one "
            f"for each class of config.model.num_classes, or (); it has {len(weights)}, the "
            f"smallest {min(weights)}"
        )
    for field in ("ema.form", "ema.every_steps"):
        if not value["ema.decay"] and value[field] != default[field]:
            raise UserError(
                f"config.{field} = {value[field]!r} does nothing with config.ema.decay = 0"
            )
    softened = ("loss.label_smoothing", "augment.mixup", "augment.cutmix")
    if (
        value["loss.name"] == "bce"
        and value["loss.bce_threshold"]
        and not any(value[field] for field in softened)
    ):
        raise UserError(
            f"config.loss.bce_threshold = {value['loss.bce_threshold']} does nothing to targets of "
            f"0 and 1: set one of config.{', config.'.join(softened)}"
        )
    for field, (choice, readers) in _READ_BY.items():
        if value[choice] not in readers and value[field] != default[field]:
            raise UserError(
                f"config.{field} = {value[field]!r} does nothing with config.{choice} = "
                f"{value[choice]!r}: leave it at {default[field]!r}, or use {' | '.join(readers)}"
            )
    if value["batch_size"] % value["optim.accumulate"]:
        raise UserError(
            f"config.batch_size = {value['batch_size']} is not divisible by "
            f"config.optim.accumulate = {value['optim.accumulate']}"
        )
    group = value.get("model.bn_group", 0)
    if group and value["batch_size"] // value["optim.accumulate"] % group:
        raise UserError(
            f"config.model.bn_group = {group} does not divide the "
            f"{value['batch_size'] // value['optim.accumulate']} images that the model sees at once"
        )
    if value["init.weights"] and value.get("model.zero_init_residual"):
        raise UserError(
            "config.model.zero_init_residual = True does nothing where config.init.weights gives "
            "the weights; set --config.model.zero_init_residual=false"
        )
    if value["eval.image_size"] > value["eval.resize"]:
        raise UserError(
            f"config.eval.image_size = {value['eval.image_size']} is larger than "
            f"config.eval.resize = {value['eval.resize']}: the centre crop would leave the image"
        )
    if value["optim.freeze_epochs"] and not value["init.weights"]:
        raise UserError(
            f"config.optim.freeze_epochs = {value['optim.freeze_epochs']} would freeze random "
            "weights: give --weights=FILE, or leave it at 0"
        )
    if value["optim.warmup_epochs"] >= value["epochs"]:
        raise UserError(
            f"config.optim.warmup_epochs = {value['optim.warmup_epochs']} leaves nothing of "
            f"config.epochs = {value['epochs']}"
        )


def _check_augment(value: dict[str, Any]) -> None:
    for field in _SHARES:
        if not 0 <= value[field] <= 1:
            raise UserError(f"config.{field} = {value[field]!r} must be from 0 to 1")
    if not value["augment.rand_num_ops"] > 0:
        raise UserError("config.augment.rand_num_ops must be above 0; augment.auto = none is off")
    auto = value["augment.auto"]
    magnitude, highest = value["augment.rand_magnitude"], 10 if auto == "randaugment_timm" else 30
    if not 0 <= magnitude <= highest:
        raise UserError(f"config.augment.rand_magnitude = {magnitude} must be from 0 to {highest}")
    jitter = value["augment.jitter"]
    if len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
        raise UserError(
            f"config.augment.jitter = {jitter!r} must be (brightness, contrast, saturation, hue), "
            "none negative and the hue at most 0.5"
        )
    default = flatten(defaults.defaults(value["model.name"]))
    mixes = (value["augment.mixup"] > 0) + (value["augment.cutmix"] > 0)
    rand = auto.startswith("randaugment")
    for field, works, reason in (
        ("auto_interpolation", auto != "none", "augment.auto is none"),
        ("rand_num_ops", rand, "augment.auto is not randaugment"),
        ("rand_magnitude", rand, "augment.auto is not randaugment"),
        ("rand_deviation", auto == "randaugment_timm", "augment.auto is not randaugment_timm"),
        ("erase_fill", value["augment.erase"] > 0, "augment.erase is 0"),
        ("mix_probability", mixes > 0, "augment.mixup and augment.cutmix are 0"),
        ("mix_switch", mixes == 2, "augment.mixup and augment.cutmix are not both on"),
    ):
        field = f"augment.{field}"
        if not works and value[field] != default[field]:
            raise UserError(f"config.{field} = {value[field]!r} would do nothing: {reason}")
    if mixes and not value["augment.mix_probability"] > 0:
        raise UserError(
            "config.augment.mix_probability = 0 turns mixup and cutmix off: set their alphas to 0"
        )
    if mixes and value["batch_size"] < 2:
        raise UserError("config.batch_size = 1 leaves mixup and cutmix no second image")


def _check_resolution(value: dict[str, Any]) -> None:
    start, final, ramp = (value[f"augment.{f}"] for f in ("start_size", "image_size", "size_ramp"))
    if not start and any(ramp):
        raise UserError(
            f"config.augment.size_ramp = {ramp!r} does nothing with config.augment.start_size = 0"
        )
    if start and not (0 < start <= final and len(ramp) == 2 and 0 <= ramp[0] < ramp[1]):
        raise UserError(
            f"config.augment.start_size = {start} must be above 0, at most image_size = {final}, "
            f"and size_ramp = {ramp!r} must be (first epoch, last epoch) of the growth"
        )


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{"optim.peak_lr": 0.1, ...}: one entry a leaf, sequences as tuples."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = tuple(value) if isinstance(value, list) else value
    return flat


def to_json(config: ConfigDict) -> str:
    """The resolved config as indented JSON; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str, origin: str | os.PathLike = "config.json") -> ConfigDict:
    """The checked config that `to_json` wrote; nothing is executed."""
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as e:
        raise UserError(f"{origin} is not valid JSON: {_one_line(e)}") from e
    if not isinstance(tree, dict):
        raise UserError(f"{origin} does not hold a config")
    return check(ConfigDict(_tuples(tree)))


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """One `field: old -> new` per field that changes what a run computes; [] where none does."""
    a, b = flatten(old), flatten(new)
    return [
        f"{field}: {a.get(field)!r} -> {b.get(field)!r}"
        for field in sorted(a.keys() | b.keys())
        if field not in OPERATIONAL and a.get(field) != b.get(field)
    ]


def _child(node: ConfigDict, name: str, field: str, config: ConfigDict) -> Any:
    if name not in node:
        raise UserError(f"config.{field} is not a field{_nearest(field, flatten(config))}")
    return node[name]


def _nearest(field: str, fields: Iterable[str]) -> str:
    fields = list(fields)
    near = difflib.get_close_matches(field, fields, n=1, cutoff=0.6)
    if not near:  # the right name in the wrong group
        near = [f for f in fields if f.rpartition(".")[2] == field.rpartition(".")[2]]
    return f"; did you mean config.{near[0]}?" if near else "; imagenet_jax/defaults.py lists them"


def _parse(field: str, old: Any, text: str) -> Any:
    if isinstance(old, str):
        return text
    try:
        if isinstance(old, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(old, int):
            return int(text)
        if isinstance(old, float):
            return float(text)
        value = ast.literal_eval(text if text.strip() else "()")
        value = tuple(value) if isinstance(value, tuple | list) else (value,)
        if isinstance(old, tuple) and old and isinstance(old[0], float):
            value = tuple(float(v) for v in value)
        return value
    except (KeyError, ValueError, SyntaxError, TypeError):
        raise UserError(f"config.{field} = {text!r} should be {_kind(old)}, like {old!r}") from None


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a word"}
    if isinstance(value, tuple):
        return "a list of numbers"
    return names.get(type(value), type(value).__name__)


def _same_type(default: Any, value: Any) -> bool:
    if isinstance(default, float):
        return isinstance(value, float | int) and not isinstance(value, bool)
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(
            isinstance(v, float | int) and not isinstance(v, bool) for v in value
        )
    return type(default) is type(value)


def _tuples(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        k: _tuples(v) if isinstance(v, dict) else tuple(v) if isinstance(v, list) else v
        for k, v in tree.items()
    }


def _one_line(reason: object) -> str:
    return " ".join(str(reason).split())
