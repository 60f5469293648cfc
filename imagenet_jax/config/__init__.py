"""Configs in and out: load a file, apply overrides, check, write as JSON, compare."""

import ast
import contextlib
import difflib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from imagenet_jax import models, strict_json
from imagenet_jax.config import fields as defaults
from imagenet_jax.config.rules import check_values, lr_scaling_of
from imagenet_jax.errors import UserError, one_line

# Fields that say how a run is carried out, not what is computed: they may change on resumption.
OPERATIONAL = (
    "resume_with_changes", "data.path", "data.threads", "data.workers", "data.prefetch_mb",
    "data.undecodable",
    "log.every_steps", "log.tensorboard", "log.group_norms",
    "log.histograms_every_epochs", "log.watchdog_seconds", "log.images", "log.wandb", "log.mlflow",
    "profile.steps", "debug.nans", "debug.determinism",
    "checkpoint.keep", "eval.batch_size", "mesh.fsdp", "nonfinite.policy",
    "nonfinite.max_rewinds", "nonfinite.skip_steps",
)  # fmt: skip

executed: set[Path] = set()  # the Python files that made the config that was loaded last


def load(spec: str, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """The config of `path.py` or `path.py:arg`, with (field, text) overrides, checked and locked.

    `path.json` is what `to_json` wrote: the config.json of a workdir or of a published baseline.

    Raises UserError for a missing or failing file, an unknown field, a wrong type, a bad value.
    """
    executed.clear()
    path, _, arg = spec.partition(":")
    config = _read_json(path) if path.endswith(".json") else _run(spec, path, arg)
    apply_overrides(config, overrides)
    return check(config)


def _read_json(path: str) -> ConfigDict:
    try:
        text = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"config file {path!r} cannot be read: {one_line(e)}") from e
    return ConfigDict(from_json(text, path))


def _run(spec: str, path: str, arg: str) -> ConfigDict:
    with importing_beside(path):
        module = run_file(path, "config file", "the shipped ones are in configs/")
        if not hasattr(module, "get_config"):
            raise UserError(f"config file {path!r} defines no get_config(arg='')")
        try:
            config = module.get_config(arg) if arg else module.get_config()
        except UserError:
            raise
        except Exception as e:
            reason = one_line(e.args[0] if e.args else e, length=None)
            raise UserError(
                f"config {spec!r}: get_config fails: {type(e).__name__}: {reason}"
            ) from e
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"config {spec!r}: get_config returns {type(config).__name__}; return the ConfigDict "
            "of imagenet_jax.config.fields.defaults(), with your changes"
        )
    return config


def run_file(path: str, what: str, hint: str) -> ModuleType:
    """The module that the Python file `path` makes, which is run.

    Raises UserError where it is not there (with the `hint`), is no Python file, or fails.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{what} {path!r} does not exist; {hint}")
    module_spec = importlib.util.spec_from_file_location(file.stem, file)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"{what} {path!r} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(module_spec)
    executed.add(file.resolve())
    try:
        with importing_beside(path):
            module_spec.loader.exec_module(module)
    except Exception as e:
        raise UserError(f"{what} {path!r} fails: {type(e).__name__}: {e}") from e
    return module


@contextlib.contextmanager
def importing_beside(path: str) -> Iterator[None]:
    """Let the Python file `path` import its neighbors, by name or by the name of their folder.

    Neighbors are forgotten afterwards: another folder may have files of the same names.
    """
    folder = Path(path).resolve().parent
    before, added = set(sys.modules), [str(folder), str(folder.parent)]
    sys.path[:0] = added  # `import neighbor` and `from configs import resnet50`
    try:
        yield
    finally:
        for entry in added:
            sys.path.remove(entry)
        neighbors = files_of(sys.modules[name] for name in set(sys.modules) - before)
        executed.update(path for path in neighbors if path.is_relative_to(folder.parent))
        for name in set(sys.modules) - before:
            origin = getattr(sys.modules[name], "__file__", None)
            if origin and "." not in name and Path(origin).parent == folder:
                del sys.modules[name]


def files_of(modules: Iterable[ModuleType]) -> set[Path]:
    """Return the files that made the modules.

    Python's import system gives absolute paths. A relative one, as in `torch.classes`, is no file.
    """
    files = (Path(getattr(module, "__file__", None) or "") for module in modules)
    return {file.resolve() for file in files if file.is_absolute()}


def apply_overrides(config: ConfigDict, overrides: Iterable[tuple[str, str]]) -> None:
    """Set each (field, text). A model of another family brings its own fields.

    Another optimizer brings its own `lr_scaling` where the config has the old one's default.
    Raises UserError if a field that only the old family has was changed from its default.
    """
    overrides = list(overrides)
    _scale_by_name(config, {field for field, _ in overrides})
    names = [text for field, text in overrides if field == "model.name"]
    model = config.get("model")
    if not names or not isinstance(model, ConfigDict) or model.get("name") not in models.names():
        names = []
    else:
        models.check_name(names[-1])
        old, new = defaults.defaults(model.name).model, defaults.defaults(names[-1]).model
        with model.unlocked():
            for field, value in new.items():
                if field not in model:
                    model[field] = value
    for field, text in overrides:
        override(config, field, text)
    if not names:
        return
    with model.unlocked():
        for field in [name for name in model if name in old and name not in new]:
            value = model[field]
            del model[field]
            if value != old[field]:
                raise UserError(
                    f"config.model.{field} = {value!r} does not belong to {names[-1]}; set "
                    f"--config.model.{field}={old[field]} to leave it out"
                )


def _scale_by_name(config: ConfigDict, overridden: set[str]) -> None:
    """Undo what `check` did to an "auto" lr_scaling if only the name of the optimizer changes."""
    optim = config.get("optim")
    if "optim.name" not in overridden or "optim.lr_scaling" in overridden:
        return
    if not isinstance(optim, ConfigDict) or not {"name", "lr_scaling"} <= set(optim):
        return
    if optim.lr_scaling == lr_scaling_of(optim.name):
        optim.lr_scaling = "auto"


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
            raise UserError(f"config.{field} is missing; start from imagenet_jax.config.fields")
        if not _same_type(default, present[field]):
            raise UserError(
                f"config.{field} = {present[field]!r} should be {_kind(default)}, like {default!r}"
            )
    check_values(present, expected)
    config.optim.lr_scaling = _resolved(present)["optim.lr_scaling"]
    return config.lock()


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{"optim.base_lr": 0.1, ...}: one entry a leaf, sequences as tuples."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = tuple(value) if isinstance(value, list) else value
    return flat


def to_json(config: ConfigDict) -> str:
    """The resolved config as indented JSON; tuples become lists."""
    return strict_json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str, origin: str | os.PathLike = "config.json") -> ConfigDict:
    """The checked config that `to_json` wrote; nothing is executed.

    A field that did not exist when it was written has its default, which is what was done then.
    Raises UserError for unknown fields, wrong types and bad values.
    """
    try:
        tree = strict_json.loads(text)
    except (ValueError, RecursionError) as e:  # integers of thousands of digits too
        raise UserError(f"{origin} is not valid JSON: {one_line(e)}") from e
    if not isinstance(tree, dict):
        raise UserError(f"{origin} does not hold a config")
    config = ConfigDict(_tuples(tree))
    model = config.get("model", ConfigDict())
    if not isinstance(model, ConfigDict):
        raise UserError(f"{origin}: config.model = {model!r} should be a group of fields")
    models.check_name(model.get("name", ""))
    _fill(config, defaults.defaults(model.name))
    return check(config)


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """One `field: old -> new` per field that changes what a run computes; [] where none does."""
    a, b = _resolved(flatten(old)), _resolved(flatten(new))
    return [
        f"{field}: {a.get(field)!r} -> {b.get(field)!r}"
        for field in sorted(a.keys() | b.keys())
        if field not in OPERATIONAL and a.get(field) != b.get(field)
    ]


def _resolved(flat: dict[str, Any]) -> dict[str, Any]:
    """Return a flat config with the value that "auto" stands for, so that config.json has it."""
    if "optim.lr_scaling" not in flat:
        return flat
    rule = lr_scaling_of(flat["optim.name"], flat["optim.lr_scaling"])
    return flat | {"optim.lr_scaling": rule}


def _fill(config: ConfigDict, default: ConfigDict) -> None:
    """Give `config` the fields of `default` that it does not have."""
    for name, value in default.items():
        if name not in config:
            config[name] = value
        elif isinstance(value, ConfigDict) and isinstance(config[name], ConfigDict):
            _fill(config[name], value)


def _child(node: ConfigDict, name: str, field: str, config: ConfigDict) -> Any:
    if name not in node:
        raise UserError(f"config.{field} is not a field{_nearest(field, flatten(config))}")
    return node[name]


def _nearest(field: str, fields: Iterable[str]) -> str:
    fields = list(fields)
    near = difflib.get_close_matches(field, fields, n=1, cutoff=0.6)
    if not near:  # the right name in the wrong group
        near = [f for f in fields if f.rpartition(".")[2] == field.rpartition(".")[2]]
    return (
        f"; did you mean config.{near[0]}?"
        if near
        else "; imagenet_jax/config/fields.py lists them"
    )


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
    except (KeyError, ValueError, SyntaxError, TypeError, OverflowError, RecursionError):
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
