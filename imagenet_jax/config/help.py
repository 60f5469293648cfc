"""Tables of the config fields, and of the configs in a folder, for help and error messages."""

import contextlib
import dataclasses
import difflib
import re
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from imagenet_jax.config import load, python_files
from imagenet_jax.config.fields import ON, REMOVED, Field, fields_of_model
from imagenet_jax.errors import UserError

SHIPPED = Path("configs")


def help_table(prefix: str = "", model: str = "resnet50") -> Table:
    """Return the fields whose name starts with `prefix`: default, allowed values and meaning."""
    from imagenet_jax import models  # imports jax and flax, which take seconds

    prefix = prefix.removeprefix("config.")
    table = Table(box=box.SIMPLE, title=f"config fields of {model}", title_justify="left")
    table.add_column("field", overflow="fold")
    for heading in ("default", "allowed", "meaning"):
        table.add_column(heading, overflow="fold")
    fields = fields_of_model(model)
    named = dataclasses.replace(fields["model.name"], choices=tuple(models.names()))
    for name, field in (fields | {"model.name": named}).items():
        if name.startswith(prefix):
            default = field.default
            text = f"{default:g}" if isinstance(default, float) else str(default) or '""'
            table.add_row(name, text, _describe_allowed(field), _describe_meaning(field))
    return table


def print_fields(prefix: str, spec: str | None) -> None:
    """Print the `help_table` of the model of the config `spec`, or of ResNet-50 without one."""
    table = help_table(prefix, load(spec).model.name if spec else "resnet50")
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
    sentences = [field.doc]
    for other, values in field.read_by.items():
        sentences.append(
            f"Only with {other}" + ("" if values is ON else f" = {' | '.join(values)}")
        )
    if field.operational:
        sentences.append("May change when a run is resumed")
    return ". ".join(sentences)


def list_configs(folder: Path = SHIPPED) -> dict[str, str]:
    """Return {"configs/resnet50.py:a3": one line about it, ...}: every config of a folder.

    The line is the first of the file's docstring. For an entry of the file's `VARIANTS` it is the
    entry, if that is a text, or the first line of its docstring. The files are executed; those
    that fail are left out.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.py")):
        with contextlib.suppress(UserError):
            module = python_files.run_file(str(path), "config file")
            variants = getattr(module, "VARIANTS", {}).items()
            texts = {str(path): module.__doc__} | {
                f"{path}:{name}": entry if isinstance(entry, str) else entry.__doc__
                for name, entry in variants
            }
            found |= {spec: (text or "").partition("\n")[0] for spec, text in texts.items()}
    return found


def similar_configs(path: str) -> str:
    """Return advice that names the shipped configs most like the missing file `path`."""
    known = {re.split("[/:]", spec.replace(".py", ""))[-1]: spec for spec in list_configs()}
    stem = Path(path).stem
    near = [stem] if stem in known else difflib.get_close_matches(stem, known, n=3)
    if not near:
        return "the shipped ones are in configs/"
    return f"did you mean {' or '.join(known[word] for word in near)}?"


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
