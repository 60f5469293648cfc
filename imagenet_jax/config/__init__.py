"""Loads configs from files, applies overrides, checks values, and reads and writes JSON."""

import ast
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from imagenet_jax.config import python_files, rules
from imagenet_jax.config.fields import OPERATIONAL, Field, defaults, fields_of_model
from imagenet_jax.errors import UserError, check_choice, one_line
from imagenet_jax.files import dump_json, parse_json

Overrides = Iterable[tuple[str, str]]  # (dotted field, text) of --config.FIELD=TEXT

T = TypeVar("T")


def load(spec: str, overrides: Overrides = ()) -> ConfigDict:
    """Return the config of `path.py` or `path.py:variant` with the overrides, checked and locked.

    `path.json` is a file with the output of `to_json`, such as the config.json of a workdir.

    Raises UserError for a missing or failing file, an unknown field, or an invalid value.
    """
    python_files.executed.clear()
    path = spec.partition(":")[0]
    config = _read_json(path) if path.endswith(".json") else python_files.run_config(spec)
    apply_overrides(config, overrides)
    return check(config)


def _read_json(path: str) -> ConfigDict:
    try:
        text = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"config file {path!r} cannot be read: {one_line(e)}") from e
    return ConfigDict(from_json(text, path))


def pick_variant(variant: str, variants: dict[str, T]) -> T:
    """Return `variants[variant]`. Raises UserError, listing the variants, if there is none."""
    check_choice("config variant", variant, variants)
    return variants[variant]


def copy_config(config: ConfigDict, changes: Mapping[str, Any] | None = None) -> ConfigDict:
    """Return an unlocked copy with the values of `changes`, by dotted field."""
    copy = ConfigDict(config.to_dict())
    copy.update_from_flattened_dict(changes or {})
    return copy


def apply_overrides(config: ConfigDict, overrides: Overrides) -> None:
    """Set each (field, text).

    A new model.name replaces the fields of the previous family with those of the new one, and the
    previous default of a shared field with the new one. A new optim.name sets lr_scaling to "auto"
    if it has the value that "auto" gives for the previous optimizer.

    Raises UserError for an unknown field, a wrong type, or a non-default value of a field that the
    new family lacks.
    """
    overrides = list(overrides)
    given = dict(overrides)
    optim, model = config.get("optim"), config.get("model")
    if (
        isinstance(optim, ConfigDict)
        and "optim.name" in given
        and "optim.lr_scaling" not in given
        and optim.get("lr_scaling") == rules.resolve_lr_scaling(optim.get("name"))
    ):
        optim.lr_scaling = "auto"
    changes_model = isinstance(model, ConfigDict) and "model.name" in given
    if changes_model:
        before = defaults(model.get("name", "")).model
        after = defaults(given["model.name"]).model
        with model.unlocked():
            _fill(model, after)
        for field in set(before) & set(after) - {"name"}:  # of both families
            if model[field] == before[field]:
                model[field] = after[field]
    for field, text in overrides:
        override(config, field, text)
    if changes_model:
        _leave_out_fields(model, before)


def _leave_out_fields(model: ConfigDict, before: ConfigDict) -> None:
    """Delete the fields of only the previous family. Raises UserError if one is not the default."""
    for field in sorted(set(before) & (set(model) - set(defaults(model.name).model))):
        value = model[field]
        with model.unlocked():
            del model[field]
        if value != before[field]:
            raise UserError(
                f"config.model.{field} = {value!r} does not belong to {model.name}; set "
                f"--config.model.{field}={before[field]} to leave it out"
            )


def override(config: ConfigDict, field: str, text: str) -> None:
    """Set the dotted `field` to command-line `text`, converted to the type of the field."""
    flat = flatten(config)
    if field not in flat:
        if value := next((name for name in flat if field.startswith(f"{name}.")), None):
            raise UserError(
                f"config.{field}: {value.rpartition('.')[2]!r} is a value and has no fields"
            )
        inside = [name.removeprefix(f"{field}.") for name in flat if name.startswith(f"{field}.")]
        if inside:
            names = dict.fromkeys(name.partition(".")[0] for name in inside)
            raise UserError(f"config.{field} is a group; set one of its fields: {', '.join(names)}")
        from imagenet_jax.config.help import unknown_field

        model = flat.get("model.name", "")
        raise UserError(unknown_field(field, fields_of_model(model), model))
    config.update_from_flattened_dict({field: _parse(field, flat[field], text)})


def _parse(field: str, old: Any, text: str) -> Any:
    if isinstance(old, str):
        return text
    try:
        if isinstance(old, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(old, int | float):
            return type(old)(text)
        value = ast.literal_eval(text if text.strip() else "()")
        value = tuple(value) if isinstance(value, tuple | list) else (value,)
        return tuple(float(v) for v in value) if old and isinstance(old[0], float) else value
    except (KeyError, ValueError, SyntaxError, TypeError, OverflowError, RecursionError):
        kind = Field(old, "").kind()
        raise UserError(f"config.{field} = {text!r} should be {kind}, like {old!r}") from None


def check(config: ConfigDict) -> ConfigDict:
    """Check the config, resolve optim.lr_scaling, and return the config locked.

    Raises UserError unless it has every field, and every value is allowed and has an effect.
    """
    from imagenet_jax import models  # imports jax and flax, which take seconds

    value = flatten(config)
    model = value.get("model.name", "")
    rules.check_fields(value, fields_of_model(model), model)
    rules.check_across(value)
    rules.check_sides(value, models.family(model).multiple(model))
    config.optim.lr_scaling = rules.resolve_lr_scaling(config.optim.name, config.optim.lr_scaling)
    return config.lock()


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Return {"optim.base_lr": 0.1, ...}, with one entry per leaf and lists as tuples."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = tuple(value) if isinstance(value, list) else value
    return flat


def to_json(config: ConfigDict) -> str:
    """Return the resolved config as indented JSON; tuples become lists."""
    return dump_json(config.to_dict(), indent=2) + "\n"


def from_json(text: str, origin: str | os.PathLike = "config.json") -> ConfigDict:
    """Return the checked config that `to_json` wrote. No code is executed.

    Fields that were added later get their defaults, which keep the earlier behavior. Raises
    UserError for unknown fields and invalid values.
    """
    try:
        tree = parse_json(text)
    except (ValueError, RecursionError) as e:  # also for integers with thousands of digits
        raise UserError(f"{origin} is not valid JSON: {one_line(e)}") from e
    if not isinstance(tree, dict):
        raise UserError(f"{origin} does not hold a config")
    config = ConfigDict(_tuples(tree))
    model = config.get("model", ConfigDict())
    if not isinstance(model, ConfigDict):
        raise UserError(f"{origin}: config.model = {model!r} should be a group of fields")
    _fill(config, defaults(model.get("name", "")))
    return check(config)


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Return `field: old -> new` for each field that changes what a run computes."""
    a, b = (
        flatten(c)
        | {"optim.lr_scaling": rules.resolve_lr_scaling(c.optim.name, c.optim.lr_scaling)}
        for c in (old, new)
    )
    return [
        f"{field}: {a.get(field)!r} -> {b.get(field)!r}"
        for field in sorted(a.keys() | b.keys())
        if field not in OPERATIONAL and a.get(field) != b.get(field)
    ]


def _fill(config: ConfigDict, default: ConfigDict) -> None:
    """Add the fields of `default` that `config` does not have."""
    for name, value in default.items():
        if name not in config:
            config[name] = value
        elif isinstance(value, ConfigDict) and isinstance(config[name], ConfigDict):
            _fill(config[name], value)


def _tuples(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        k: _tuples(v) if isinstance(v, dict) else tuple(v) if isinstance(v, list) else v
        for k, v in tree.items()
    }
