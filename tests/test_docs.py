"""The docs name only files, commands, flags, fields and configs that exist."""

import contextlib
import io
import re
import shlex
from importlib import import_module
from importlib.util import find_spec

import pytest
from conftest import REPOSITORY

from imagenet_jax import config as config_io

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
PAGES += sorted((REPOSITORY / "docs").glob("*.md"))
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def _commands(page):
    """Yield (module, arguments) of each `python -m MODULE ...` in code of the page."""
    text = re.sub(r"\\\n\s*", "", page.read_text())
    code = re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", text, re.DOTALL)
    for line in "\n".join(block or span for block, span in code).splitlines():
        for call in re.findall(r"python -m ((?:imagenet_jax|benchmarks)\b[^|;&]*)", line):
            module, *arguments = shlex.split(call.replace("...", ""), comments=True)
            yield module, arguments


@each_page
def test_links_and_pictures_exist(page):
    targets = re.findall(r"\]\(([^)#\s]+)\)", page.read_text())
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


@each_page
def test_commands_and_their_flags_exist(page):
    for module, arguments in _commands(page):
        spec = find_spec(module)
        assert spec, f"{module} of {page.name}"
        if spec.submodule_search_locations:
            module += ".__main__"
        flags = {a.partition("=")[0] for a in arguments if re.match(r"--[a-z]\w+", a)}
        flags = {flag for flag in flags if not flag.startswith("--config.")}
        out = io.StringIO()
        if flags and hasattr(import_module(module), "main"):
            with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
                import_module(module).main(["--help"])
            unknown = {flag for flag in flags if flag not in out.getvalue()}
            assert not unknown, f"{module} in {page.name}"


@each_page
def test_configs_load_and_have_the_fields_that_are_set(page):
    for _, arguments in _commands(page):
        specs = [a.removeprefix("--config=") for a in arguments if a.startswith("--config=")]
        fields = [a.removeprefix("--config.") for a in arguments if a.startswith("--config.")]
        if not specs or not specs[0].startswith("configs/") or "NAME" in specs[0]:
            continue
        overrides = [tuple(field.split("=", 1)) for field in fields if "=" in field]
        config_io.load(str(REPOSITORY / specs[0]), overrides)


def test_the_config_of_the_readme_loads(tmp_path):
    text = (REPOSITORY / "README.md").read_text()
    (source,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "my_config.py"
    path.write_text(source)
    config = config_io.load(str(path), [("optim.base_lr", "0.2")])
    assert (config.model.num_classes, config.epochs, config.optim.base_lr) == (100, 30.0, 0.2)


def test_the_readme_is_a_page_to_begin_with():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 200
