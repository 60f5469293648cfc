"""Checks of every launcher: shellcheck, --help, the training command, its section in the docs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LAUNCH = REPOSITORY / "launch"
SCRIPTS = sorted(str(path.relative_to(REPOSITORY)) for path in LAUNCH.rglob("*.s[hb]*"))
EVERY = [*SCRIPTS, "launch/kubernetes/jobset.yaml", "launch/skypilot.yaml"]


def test_scripts_exist():
    assert len(SCRIPTS) == 4


def test_shellcheck_finds_nothing():
    beside_python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    tool = shutil.which("shellcheck", path=beside_python)
    if tool is None:
        pytest.skip("shellcheck is not installed: pip install -e '.[test]'")
    run = subprocess.run(
        [tool, *SCRIPTS], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_is_executable_and_has_help(fakes, script):
    assert os.access(REPOSITORY / script, os.X_OK)
    run = fakes.run(script, "--help")
    assert run.returncode == 0, run.stderr
    assert script in run.stdout
    assert "--dry_run" in run.stdout
    assert not re.search(r"^#|^set -", run.stdout, re.MULTILINE)


@pytest.mark.parametrize("launcher", EVERY)
def test_all_launchers_start_the_same_module(launcher):
    text = (REPOSITORY / launcher).read_text()
    if launcher.endswith("kubernetes/launch.sh"):
        text = (LAUNCH / "kubernetes/jobset.yaml").read_text()
    assert re.search(r"-m,? imagenet_jax\.main", text)


@pytest.mark.parametrize("launcher", [*SCRIPTS, "launch/skypilot.yaml"])
def test_the_docs_describe_the_launcher(launcher):
    page = (REPOSITORY / "docs/launch.md").read_text()
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    (section,) = [s for s in sections if launcher in s.splitlines()[0]]
    for point in ("Needs", "Start", "Watch", "Stop", "Costs"):
        assert f"**{point}:**" in section, f"{launcher}: {point}"
    assert launcher in section.split("**Start:**")[1]
