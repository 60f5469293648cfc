"""The list of commands, --help and shell completion."""

import importlib
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from imagenet_jax import __main__ as listing
from imagenet_jax import models


def commands():
    """Return the modules of the package that run as `python -m MODULE`."""
    for path in sorted((REPOSITORY / "imagenet_jax").rglob("*.py")):
        if "__main__" in path.read_text() and path.name != "provenance.py":
            module = path.relative_to(REPOSITORY).with_suffix("")
            yield ".".join(p for p in module.parts if p != "__main__")


def test_the_list_names_every_command_with_its_summary(capsys):
    assert listing.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split(maxsplit=3)[2] for line in lines if line.startswith("  python -m ")]
    assert sorted([*listed, "imagenet_jax"]) == sorted(commands())
    assert any(line.endswith("imagenet_jax.main        Train a model.") for line in lines)


def test_the_list_of_models_and_configs(capsys):
    assert listing.main(["--models"]) == 0
    assert capsys.readouterr().out.split() == models.names()
    assert listing.main(["--configs"]) == 0
    out = capsys.readouterr().out
    for path in (REPOSITORY / "configs").glob("*.py"):
        assert f"configs/{path.name}" in out


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("imagenet_jax.eval --w", ["--weights", "--weights_key", "--workdir"]),
        ("imagenet_jax --con", ["--configs"]),
        ("imagenet_jax.main --config.optim.nes", ["--config.optim.nesterov"]),
    ],
)
def test_a_shell_completes_flags(tmp_path, words, completions):
    """As argcomplete's shell function asks; the 3 leading words are `python -m MODULE`."""
    line, module = f"python -m {words}", words.split()[0]
    answer = tmp_path / "answer"
    subprocess.run(
        [sys.executable, "-m", module],
        cwd=REPOSITORY, timeout=120, check=True,
        env=os.environ | {
            "_ARGCOMPLETE": "3", "_ARGCOMPLETE_IFS": "\n", "COMP_TYPE": "9", "COMP_LINE": line,
            "COMP_POINT": str(len(line)), "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        },
    )  # fmt: skip
    assert sorted(answer.read_text().split()) == completions


def test_every_command_has_the_marker_that_argcomplete_looks_for():
    for module in commands():
        subprocess.run([sys.executable, "-m", "argcomplete._check_module", module], check=True)


@pytest.mark.parametrize(
    ("module", "typed", "meant"),
    [*((module, "--debgu", "--debug") for module in commands()),
     ("imagenet_jax.main", "--confg=x.py", "--config")],
)  # fmt: skip
def test_a_mistyped_flag_is_corrected(module, typed, meant, capsys):
    folder = (REPOSITORY / module.replace(".", "/")).is_dir()
    command = importlib.import_module(f"{module}.__main__" if folder else module)
    with pytest.raises(SystemExit, match="2"):
        command.main([typed])
    assert f"argument {typed.partition('=')[0]}; did you mean {meant}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (
            "main",
            ["--config", "--workdir", "continues", "--help_config", "--config.optim.nesterov"],
        ),
        ("eval", ["--workdir", "--checkpoint", "--follow", "counted once", "eval/STEP.json"]),
        ("convert", ["--from", "--to", "--model", "torchvision", "load_state_dict"]),
        ("predict", ["IMAGE", "--weights", "--top", "--html", "exit code"]),
        ("explain", ["IMAGE", "--class", "--layer", "--methods", "gradcam", "? lists the"]),
        ("report", ["WORKDIR", "--out", "--png", "--markdown"]),
        ("prepare", ["--tars", "--folder", "--resize", "killed continues", "not comparable"]),
        ("sweep", ["--grid", "--jobs", "--retry_failed", "--baseline", "command continues"]),
        ("doctor", ["--json", "--allow", "fingerprint", "leakage", "Exits with 1"]),
        ("publish", ["WORKDIR", "--out", "--checkpoint", "--table", "fingerprint", "--no_weights"]),
        ("reproduce", ["BASELINE", "--steps", "--full", "bit for bit", "PASS, or FAIL"]),
        ("data.bench", ["--config", "--need", "stage by stage"]),
    ],
)
def test_help_is_fast_and_describes_the_command(module, words):
    if (REPOSITORY / "imagenet_jax" / module).is_dir():
        module += ".__main__"
    code = (
        f"import sys; sys.argv = ['x', '--help']\n"
        f"import imagenet_jax.{module} as command\n"
        "from imagenet_jax import cli\n"
        "try: cli.run(command.main)\n"
        "finally: assert 'jax' not in sys.modules, 'help should not import jax'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout
