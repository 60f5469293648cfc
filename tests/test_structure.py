"""The core stays small: the modules that training imports, and the README's reading order."""

import ast
import re
import subprocess
import sys

from conftest import REPOSITORY

from imagenet_jax import models

READING_ORDER = re.compile("<!-- reading order -->(.*)<!-- /reading order -->", re.DOTALL)


def _has_code(module):
    """Whether a module has more than a docstring, unlike the __init__.py of a mere folder."""
    path = REPOSITORY / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return len(ast.parse(path.read_text()).body) > 1


def test_training_imports_few_modules(digits_path, tmp_path):
    code = (
        "import sys\n"
        "from imagenet_jax import main\n"
        "assert main.main(sys.argv[1:]) == 0\n"
        "print('modules:', *(n for n in sys.modules if n.split('.')[0] == 'imagenet_jax'))\n"
    )
    flags = ["--config=configs/small_cnn.py", f"--workdir={tmp_path}/run", "--config.epochs=0.1"]
    flags += ["--config.optim.warmup_epochs=0", "--config.log.images=16"]
    flags += ["--config.model.width=0.125"]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags, f"--config.data.path={digits_path}"],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    modules = [name for name in done.stdout.splitlines()[-1].split()[1:] if _has_code(name)]
    assert "imagenet_jax.training.step" in modules
    assert len(modules) <= 60, modules
    families = {f"imagenet_jax.models.{module}" for module in models._MODULES}
    assert families & set(modules) == {"imagenet_jax.models.small_cnn"}


def test_the_reading_order_is_short_and_its_line_counts_are_true():
    (section,) = READING_ORDER.findall((REPOSITORY / "README.md").read_text())
    rows = re.findall(r"^\|[^|]*?`?([\w/]+\.py)`?[^|]*\| *([\d,]+) *\|", section, re.MULTILINE)
    counts = {name: int(lines.replace(",", "")) for name, lines in rows}
    paths = {name: REPOSITORY / name for name in counts}
    actual = {name: len(path.read_text().splitlines()) for name, path in paths.items()}
    assert counts == actual
    assert len(counts) <= 14
    assert sum(counts.values()) <= 2600
    for part in ("train.py", "config/", "models/", "data/", "training/metrics.py", "checkpoint.py"):
        assert any(part in name for name in counts), part
