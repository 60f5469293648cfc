"""Follow the steps of CONTRIBUTING.md that add a model, in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from conftest import REPOSITORY


@pytest.fixture
def checkout(tmp_path):
    """A copy of the package with the model of CONTRIBUTING.md added as its steps say."""
    root = tmp_path / "checkout"
    for name in ("imagenet_jax", "configs"):
        shutil.copytree(REPOSITORY / name, root / name)
    page = (REPOSITORY / "CONTRIBUTING.md").read_text()
    files = re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", page, re.DOTALL)
    assert [name for name, _ in files] == ["imagenet_jax/models/lenet.py"]
    for name, text in files:
        (root / name).write_text(text)
    registry = root / "imagenet_jax/models/__init__.py"
    text = registry.read_text()
    assert text.count("_MODULES = {\n") == 1
    registry.write_text(text.replace("_MODULES = {\n", '_MODULES = {\n    "lenet": ("lenet",),\n'))
    (root / "configs/lenet.py").write_text(
        "from imagenet_jax.config.fields import defaults\n"
        "from configs import quickstart\n\n"
        "def get_config():\n"
        "    c, old = defaults('lenet'), quickstart.get_config()\n"
        "    c.update({name: value for name, value in old.items() if name != 'model'})\n"
        "    c.model.num_classes = 10\n"
        "    return c\n"
    )
    return root


@pytest.mark.slow
def test_a_model_added_by_the_steps_trains_converts_predicts_and_explains(checkout, digits_path):
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(checkout)}

    def run(module, *args):
        done = subprocess.run(
            [sys.executable, "-m", f"imagenet_jax.{module}", *args],
            cwd=checkout, env=env, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(
        "main", "--config=configs/lenet.py", "--workdir=run", f"--config.data.path={digits_path}",
        "--config.epochs=2", "--config.log.images=0", "--config.log.tensorboard=false",
    )  # fmt: skip
    run("convert", "--from=run", "--to=lenet.safetensors")
    arrays = safetensors.numpy.load_file(checkout / "lenet.safetensors")
    assert arrays["conv2.weight"].shape == (16, 6, 5, 5)  # torch's layout
    run("convert", "--from=lenet.safetensors", "--to=again.safetensors")
    again = safetensors.numpy.load_file(checkout / "again.safetensors")
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    from imagenet_jax.data.builtin import make_digits

    (checkout / "digit.png").write_bytes(make_digits()["validation"][0]["image"])
    assert "digit.png" in run("predict", "digit.png", "--workdir=run")
    run("explain", "digit.png", "--workdir=run", "--methods=gradcam", "--out=explained.png")
    assert (checkout / "explained.png").stat().st_size > 1000
    run("report", "run", "--out=report.html")
    assert "lenet" in (checkout / "report.html").read_text()
