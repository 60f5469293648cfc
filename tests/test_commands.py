"""Doors: --help that needs no accelerator, and the picture of a run."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY
from PIL import Image

from imagenet_jax import plot
from imagenet_jax import train as loop
from imagenet_jax.errors import UserError


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("main", ["--config", "--workdir", "continues", "defaults.py", "--config.optim.nesterov"]),
        ("eval", ["--workdir", "--checkpoint", "--follow", "counted once", "eval/STEP.json"]),
        ("convert", ["--from", "--to", "--model", "torchvision", "load_state_dict"]),
        ("predict", ["IMAGE", "--weights", "--top", "--html", "exit code"]),
        ("explain", ["IMAGE", "--class", "--layer", "--methods", "gradcam", "? lists them"]),
        ("plot", ["--workdir", "--out", "PNG"]),
        ("prepare", ["--tars", "--folder", "--resize", "killed continues", "not comparable"]),
        ("sweep", ["--grid", "--jobs", "--retry_failed", "--baseline", "command continues"]),
        ("doctor", ["--json", "--allow", "fingerprint", "leakage", "Exits with 1"]),
        ("publish", ["WORKDIR", "--out", "--checkpoint", "--table", "fingerprint", "--no_weights"]),
        ("reproduce", ["BASELINE", "--steps", "--full", "bit for bit", "PASS, or FAIL"]),
        ("data.bench", ["--config", "--need", "stage by stage"]),
    ],
)
def test_help_is_quick_and_says_what_it_does(module, words):
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


@pytest.mark.full
def test_plot_draws_a_run(tiny, tmp_path, capsys):
    loop.train(tiny, tmp_path / "run")
    out = tmp_path / "pictures" / "run.png"
    assert plot.main([f"--workdir={tmp_path}/run", f"--out={out}"]) == 0
    with Image.open(out) as picture:
        assert picture.size == (960, 448)
        assert len(picture.convert("RGB").getcolors(10**6)) > 50  # it is not blank


def test_plot_of_no_run_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        plot.main([f"--workdir={tmp_path}", f"--out={tmp_path}/x.png"])
