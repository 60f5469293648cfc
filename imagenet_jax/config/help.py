"""Tables of the config fields, and of the configs in a folder, for help and error messages."""

import ast
import difflib
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from imagenet_jax.config.fields import ON, Field, fields_of_model
from imagenet_jax.errors import UserError

SHIPPED = Path("configs")


def help_table(prefix: str = "", model: str = "resnet50") -> Table:
    """Return the fields whose name starts with `prefix`: default, allowed values and meaning."""
    prefix = prefix.removeprefix("config.")
    table = Table(box=box.SIMPLE, title=f"config fields of {model}", title_justify="left")
    table.add_column("field", overflow="fold")
    for heading in ("default", "allowed", "meaning"):
        table.add_column(heading, overflow="fold")
    for name, field in fields_of_model(model).items():
        if name.startswith(prefix):
            default = field.default
            text = f"{default:g}" if isinstance(default, float) else str(default) or '""'
            table.add_row(name, text, field.allowed(), meaning(field))
    return table


def print_fields(prefix: str, spec: str | None) -> None:
    """Print the `help_table` of the model of the config `spec`, or of ResNet-50 without one."""
    from imagenet_jax.config import load

    table = help_table(prefix, load(spec).model.name if spec else "resnet50")
    if not table.row_count:
        raise UserError(f"no config field starts with {prefix!r}; --help_config lists all of them")
    Console(soft_wrap=False, highlight=False, markup=False).print(table)


def meaning(field: Field) -> str:
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
    entry, or the first line of the docstring of the entry's function. The files are not executed.
    """
    found = {}
    for path in sorted(folder.glob("*.py")):
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, SyntaxError):
            continue
        found[str(path)] = _first_line(tree)
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "VARIANTS":
                for name, entry in _entries(node.value).items():
                    function = functions.get(entry)
                    found[f"{path}:{name}"] = _first_line(function) if function else entry
    return found


def similar_configs(path: str) -> str:
    """Return advice that names the configs most like the missing file `path`."""
    known: dict[str, str] = {}  # by the words that name a config: its variant, or its file
    for folder in (SHIPPED, Path(path).parent):
        for spec in list_configs(folder):
            file, _, variant = spec.partition(":")
            known.setdefault(variant or Path(file).stem, spec)
    stem = Path(path).stem
    near = [stem] if stem in known else difflib.get_close_matches(stem, known, n=3)
    if not near:
        return "the shipped ones are in configs/"
    return f"did you mean {' or '.join(known[word] for word in near)}?"


def _first_line(node: ast.Module | ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]


def _entries(node: ast.expr) -> dict[str, str]:
    """Return {key: text or name of a function} of a dictionary display."""
    if not isinstance(node, ast.Dict):
        return {}
    return {
        ast.literal_eval(key): value.id if isinstance(value, ast.Name) else ast.literal_eval(value)
        for key, value in zip(node.keys, node.values, strict=True)
        if key is not None and isinstance(value, ast.Name | ast.Constant)
    }
