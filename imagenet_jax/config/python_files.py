"""Runs the Python files that make a config, and records which files they are."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from imagenet_jax.errors import UserError

executed: set[Path] = set()  # the Python files that made the config that was loaded last


def run_file(path: str, what: str) -> ModuleType:
    """Run the Python file `path` and return its module.

    Raises UserError if it does not exist (with names like it), is no Python file, or fails.
    """
    file = Path(path)
    if not file.is_file():
        from imagenet_jax.config.help import similar_configs

        raise UserError(f"{what} {path!r} does not exist; {similar_configs(path)}")
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
        neighbors = list_files(sys.modules[name] for name in set(sys.modules) - before)
        executed.update(path for path in neighbors if path.is_relative_to(folder.parent))
        for name in set(sys.modules) - before:
            origin = getattr(sys.modules[name], "__file__", None)
            if origin and "." not in name and Path(origin).parent == folder:
                del sys.modules[name]


def list_files(modules: Iterable[ModuleType]) -> set[Path]:
    """Return the files that made the modules.

    Python's import system gives absolute paths. A relative one, as in `torch.classes`, is no file.
    """
    files = (Path(getattr(module, "__file__", None) or "") for module in modules)
    return {file.resolve() for file in files if file.is_absolute()}
