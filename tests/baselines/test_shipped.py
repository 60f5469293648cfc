"""The baselines in this repository: consistent, in the README, and reproducible."""

import hashlib
import json
import os
import platform
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from safetensors import safe_open

from imagenet_jax import config as config_io
from imagenet_jax.baselines import folder as baseline
from imagenet_jax.baselines.markdown import find_baselines, update_table

FOLDERS = [found.path for found in find_baselines(REPOSITORY / "baselines")]
QUICKSTART = REPOSITORY / "baselines" / "quickstart"


def _reproduce(data, *args, flags=""):
    """Return what the command prints on one CPU device, and its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "imagenet_jax.reproduce", QUICKSTART, *args,
         f"--config.data.path={data}"],
        cwd=REPOSITORY, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr  # plugins of JAX may log there
    return done.stdout, done.returncode


def test_readme_has_the_results_of_the_baselines():
    update_table(REPOSITORY / "README.md", REPOSITORY / "baselines", check=True)
    assert QUICKSTART in FOLDERS


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_files_of_a_baseline_are_consistent(folder):
    published = baseline.read(folder)
    assert not published.provenance["git_dirty"]
    assert (folder / "README.md").read_text().startswith(f"# {folder.name}\n")
    first = published.results["results"][0]
    lines = [x for x in published.metrics if x["step"] == published.results["checkpoint"]]
    (line,) = [x for x in lines if x.get("weights") == first["weights"]]
    assert first == {name: line[name] for name in first}
    right = first["count"] - sum(n for _, _, n in published.results["by_class"]["confusion"])
    assert right / first["count"] == pytest.approx(first["top1"], abs=2e-3)
    if (folder / "weights.safetensors").exists():
        sums = published.fingerprint["weights"]["tensors"]
        with safe_open(folder / "weights.safetensors", framework="numpy") as file:
            got = {
                name: hashlib.sha256(file.get_tensor(name).tobytes()).hexdigest()
                for name in file.keys()  # noqa: SIM118
            }
        assert got == sums


def test_quickstart_config_is_the_published_one():
    published = config_io.load(str(QUICKSTART / "config.json"))
    now = config_io.load(str(REPOSITORY / "configs" / "quickstart.py"))
    assert config_io.differences(published, now) == []


@pytest.mark.slow
def test_first_steps_of_the_quickstart_are_reproduced(digits_path):
    out, code = _reproduce(digits_path, "--steps=50")
    assert code == 0, out
    assert "PASS quickstart: loss and gradient norm of 50 steps agree" in out.splitlines()[-1]


@pytest.mark.full
def test_whole_quickstart_is_reproduced(digits_path):
    out, code = _reproduce(digits_path, "--full")
    assert code == 0, out
    assert out.splitlines()[-1].startswith("PASS quickstart: ")


@pytest.mark.full
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names instructions of x86-64")
def test_quickstart_is_reproduced_on_another_processor(digits_path):
    """With 128-bit vectors every reduction adds in a different order."""
    out, code = _reproduce(digits_path, "--full", flags="--xla_cpu_max_isa=SSE4_2")
    last = out.splitlines()[-1]
    assert code == 0, out
    assert last.startswith("PASS quickstart: ") and "within the tolerance" in last
    published = json.loads((QUICKSTART / "results.json").read_text())["results"][0]["top1"]
    assert f"published {published:.2%}" in last
