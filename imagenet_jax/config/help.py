"""The table that --help_config prints, and error messages for unknown field names."""

import difflib

from rich import box
from rich.console import Console
from rich.table import Table

from imagenet_jax.config import load
from imagenet_jax.config.fields import ON, REMOVED, Field, fields_of_model
from imagenet_jax.errors import UserError


def print_fields(prefix: str, spec: str | None) -> None:
    """Print the fields whose names start with `prefix`: default, allowed values and meaning.

    The fields of `config.model` are those of the model of config `spec`, or of ResNet-50 if None.
    """
    model = load(spec).model.name if spec else "resnet50"
    title = f"config fields of {model}"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    table.add_column("field", no_wrap=True)
    table.add_column("default", overflow="fold", max_width=10)
    table.add_column("allowed", overflow="fold", max_width=24)
    table.add_column("meaning", overflow="fold")
    for name, field in fields_of_model(model).items():
        if name.startswith(prefix.removeprefix("config.")):
            default = field.default
            text = f"{default:g}" if isinstance(default, float) else str(default) or '""'
            table.add_row(name, text, _describe_allowed(field), _describe_meaning(field))
    if not table.row_count:
        raise UserError(f"no config field starts with {prefix!r}; --help_config lists all of them")
    Console(soft_wrap=False, highlight=False, markup=False).print(table)


def _describe_allowed(field: Field) -> str:
    """Return the allowed values in words: "a | b", "above 0", or the type."""
    if field.choices:
        return " | ".join(field.choices)
    if isinstance(field.default, tuple):
        return field.kind() + (f", each {field.range()}" if field.range() else "")
    return field.range() or field.kind()


def _describe_meaning(field: Field) -> str:
    """Return what a field means, when it has an effect, and whether a resumed run may change it."""
    conditions = [
        f"Only with {other}" + ("" if values is ON else f" = {' | '.join(values)}")
        for other, values in field.read_by.items()
    ]
    resumed = ["May change when a run is resumed"] if field.operational else []
    return ". ".join([field.doc, *conditions, *resumed])


def unknown_field(name: str, fields: dict[str, Field], model: object) -> str:
    """Return the error message for the dotted `name`, which is not one of the `fields`."""
    leaf = name.rpartition(".")[2]
    for field, entry in fields.items():
        group = field.rpartition(".")[0]
        if entry.was and name in (entry.was, f"{group}.{entry.was}"):
            return f"config.{name} is now called config.{field}"
    own = ", ".join(field.removeprefix("model.") for field in fields if field.startswith("model."))
    of_other_model = f"config.model.{leaf} does not belong to {model}; its fields are {own}"
    if name.startswith("model.") and leaf in _fields_of_families():
        return of_other_model
    if name in REMOVED:
        return f"config.{name} was removed: {REMOVED[name]}"
    if near := _similar_fields(name, fields):
        suggestions = " or ".join(f"config.{field}" for field in near)
        return f"config.{name} is not a field; did you mean {suggestions}?"
    if name.startswith("model.") or leaf in _fields_of_families():
        return of_other_model
    return f"config.{name} is not a field; --help_config lists them"


def _similar_fields(name: str, fields: dict[str, Field]) -> list[str]:
    """Return at most three fields that `name` may mean, the most likely first.

    Fields with this alias are preferred, then fields with the same last part in another group, then
    fields whose last part differs by a typo.
    """
    if with_alias := [field for field, entry in fields.items() if name in entry.aliases]:
        return with_alias
    plain = _plain(name)
    same = (
        [field for field in fields if _plain(field) == plain]
        or [f for f, entry in fields.items() if plain in map(_plain, (*entry.aliases, entry.was))]
        or [field for field in fields if _may_be_mistyped(plain, _plain(field))]
    )
    if "." in name:
        same.sort(key=lambda field: _likeness(name, field), reverse=True)
    return same[:3]


def _plain(name: str) -> str:
    """Return the last part of a name in lower case without underscores."""
    return name.rpartition(".")[2].lower().replace("_", "").replace("-", "")


def _may_be_mistyped(one: str, other: str) -> bool:
    return one[:1] == other[:1] and min(len(one), len(other)) > 2 and _likeness(one, other) >= 0.8


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _fields_of_families() -> set[str]:
    from imagenet_jax import models

    return {leaf for family in models.families() for leaf in family.fields}
