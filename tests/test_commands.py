"""`--help` of every command is quick and needs no accelerator."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("main", ["--config", "--workdir", "continues", "fields.py", "--config.optim.nesterov"]),
        ("eval", ["--workdir", "--checkpoint", "--follow", "counted once", "eval/STEP.json"]),
        ("convert", ["--from", "--to", "--model", "torchvision", "load_state_dict"]),
        ("predict", ["IMAGE", "--weights", "--top", "--html", "exit code"]),
        ("explain", ["IMAGE", "--class", "--layer", "--methods", "gradcam", "? lists them"]),
        ("report", ["WORKDIR", "--out", "--png", "--markdown"]),
        ("prepare", ["--tars", "--folder", "--resize", "killed continues", "not comparable"]),
        ("sweep", ["--grid", "--jobs", "--retry_failed", "--baseline", "command continues"]),
        ("doctor", ["--json", "--allow", "fingerprint", "leakage", "Exits with 1"]),
        ("publish", ["WORKDIR", "--out", "--checkpoint", "--table", "fingerprint", "--no_weights"]),
        ("reproduce", ["BASELINE", "--steps", "--full", "bit for bit", "PASS, or FAIL"]),
        ("data.bench", ["--config", "--need", "stage by stage"]),
    ],
)
def test_help_is_quick_and_says_what_it_does(module, words):
    if (REPOSITORY / "imagenet_jax" / module).is_dir():
        module += ".__main__"
    code = (
        f"import sys; sys.argv = ['x', '--help']\n"
        f"import imagenet_jax.{module} as door\n"
        "from imagenet_jax import cli\n"
        "try: cli.run(door.main)\n"
        "finally: assert 'jax' not in sys.modules, 'help should not import jax'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout
