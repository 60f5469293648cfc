"""Runs the Python files that make configs, records which were run, and lists the shipped ones."""

import contextlib
import difflib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from imagenet_jax.errors import UserError, one_line

SHIPPED = Path("configs")

executed: set[Path] = set()  # the Python files that were run to load the latest config


def run_config(spec: str) -> ConfigDict:
    """Return the unchecked config of the Python file `path`, or of its variant `path:variant`.

    Raises UserError if the file or its `get_config` fails.
    """
    path, _, variant = spec.partition(":")
    with importing_beside(path):
        module = run_file(path, "config file")
        if not hasattr(module, "get_config"):
            raise UserError(f"config file {path!r} defines no get_config(variant='')")
        if variant and not inspect.signature(module.get_config).parameters:
            raise UserError(f"config file {path!r} has no variants; leave out ':{variant}'")
        try:
            config = module.get_config(variant) if variant else module.get_config()
        except UserError:
            raise
        except Exception as e:
            text = one_line(e.args[0] if e.args else e, length=None)
            raise UserError(f"config {spec!r}: get_config fails: {type(e).__name__}: {text}") from e
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"config {spec!r}: get_config returns {type(config).__name__}; return the ConfigDict "
            "of imagenet_jax.config.fields.defaults(), with your changes"
        )
    return config


def run_file(path: str, what: str) -> ModuleType:
    """Run the Python file `path` and return its module.

    Raises UserError if it does not exist (and suggests similar names), is not Python, or fails.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{what} {path!r} does not exist; {_suggest_configs(path)}")
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


def list_configs(folder: Path = SHIPPED) -> dict[str, str]:
    """Return {"configs/resnet50.py:a3": summary, ...} for every config of a folder.

    The summary of a file is the first line of its docstring. That of a variant is its entry in the
    file's `VARIANTS`, or the first line of its docstring if the entry is a function. The files are
    executed, and those that fail are left out.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.py")):
        with contextlib.suppress(UserError):
            module = run_file(str(path), "config file")
            variants = getattr(module, "VARIANTS", {}).items()
            texts = {str(path): module.__doc__} | {
                f"{path}:{name}": entry.__doc__ if callable(entry) else str(entry)
                for name, entry in variants
            }
            found |= {spec: (text or "").partition("\n")[0] for spec, text in texts.items()}
    return found


def _suggest_configs(path: str) -> str:
    """Return advice that names the shipped configs most similar to the missing `path`."""
    known = {re.split("[/:]", spec.replace(".py", ""))[-1]: spec for spec in list_configs()}
    stem = Path(path).stem
    near = [stem] if stem in known else difflib.get_close_matches(stem, known, n=3)
    if not near:
        return "the shipped ones are in configs/"
    return f"did you mean {' or '.join(known[word] for word in near)}?"


@contextlib.contextmanager
def importing_beside(path: str) -> Iterator[None]:
    """Let the Python file `path` import files of its folder, with or without the folder's name.

    Modules that are imported by file name are removed from `sys.modules` afterwards, because
    another folder may have files with the same names.
    """
    folder = Path(path).resolve().parent
    before, added = set(sys.modules), [str(folder), str(folder.parent)]
    sys.path[:0] = added  # `import neighbor` and `from configs import resnet50`
    try:
        yield
    finally:
        for entry in added:
            sys.path.remove(entry)
        neighbors = list_files(sys.modules[name] for name in set(sys.modules) - before)
        executed.update(path for path in neighbors if path.is_relative_to(folder.parent))
        for name in set(sys.modules) - before:
            origin = getattr(sys.modules[name], "__file__", None)
            if origin and "." not in name and Path(origin).parent == folder:
                del sys.modules[name]


def list_files(modules: Iterable[ModuleType]) -> set[Path]:
    """Return the files of the modules.

    Python's import system sets absolute paths; a relative `__file__`, as in `torch.classes`, is not
    a file.
    """
    files = (Path(getattr(module, "__file__", None) or "") for module in modules)
    return {file.resolve() for file in files if file.is_absolute()}
