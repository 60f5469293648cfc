"""Messages for unknown names: what a field is called now, or which field was probably meant."""

import difflib

from imagenet_jax.config.fields import REMOVED, Field


def unknown_field(name: str, fields: dict[str, Field], model: object) -> str:
    """Return the error message for the dotted `name`, which is not among the model's `fields`."""
    leaf = name.rpartition(".")[2]
    now = [field for field, entry in fields.items() if name in _old_names(field, entry)]
    if now:
        return f"config.{name} is now called config.{now[0]}"
    own = ", ".join(field.removeprefix("model.") for field in fields if field.startswith("model."))
    of_other_model = f"config.model.{leaf} does not belong to {model}; its fields are {own}"
    if name.startswith("model.") and leaf in _fields_of_families():
        return of_other_model
    if name in REMOVED:
        return f"config.{name} was removed: {REMOVED[name]}"
    if near := similar_fields(name, fields):
        suggestions = " or ".join(f"config.{field}" for field in near)
        return f"config.{name} is not a field; did you mean {suggestions}?"
    if name.startswith("model.") or leaf in _fields_of_families():
        return of_other_model
    return f"config.{name} is not a field; --help_config lists them"


def similar_fields(name: str, fields: dict[str, Field]) -> list[str]:
    """Return at most three fields that `name` may mean, the most likely first.

    In this order: a field with this alias, one of the same last part in another group, one whose
    last part differs by a typing error.
    """
    leaf = name.rpartition(".")[2]
    with_alias = [field for field, entry in fields.items() if name in entry.aliases]
    if with_alias:
        return with_alias
    same = [field for field in fields if _plain(field) == _plain(leaf)]
    same = same or [
        field for field, entry in fields.items()
        if _plain(leaf) in map(_plain, (*entry.aliases, entry.was))
    ]  # fmt: skip
    same = same or [field for field in fields if _mistyped(_plain(leaf), _plain(field))]

    def likeness(field: str) -> float:
        return difflib.SequenceMatcher(None, name, field).ratio()

    return sorted(same, key=likeness, reverse=True)[:3] if "." in name else same[:3]


def _old_names(field: str, entry: Field) -> tuple[str, ...]:
    if not entry.was:
        return ()
    group = field.rpartition(".")[0]
    return (entry.was, f"{group}.{entry.was}")


def _plain(name: str) -> str:
    """Return the last part of a name in lower case without underscores."""
    return name.rpartition(".")[2].lower().replace("_", "").replace("-", "")


def _mistyped(one: str, other: str) -> bool:
    """Tell whether two words differ so little that one may be the other mistyped."""
    ratio = difflib.SequenceMatcher(None, one, other).ratio()
    return one[:1] == other[:1] and min(len(one), len(other)) > 2 and ratio >= 0.8


def _fields_of_families() -> set[str]:
    from imagenet_jax import models

    return {leaf for family in models.families() for leaf in family.fields}
