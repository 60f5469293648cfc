"""Evaluation of a weights file: the numbers of the checkpoint it was made from, and bad input."""

import json

import pytest
from conftest import REPOSITORY
from safetensors.numpy import load_file, save_file

from imagenet_jax import config as config_io
from imagenet_jax import convert
from imagenet_jax import eval as eval_command
from imagenet_jax.classify.evaluate_weights import evaluate_workdir, print_result


@pytest.fixture
def file(saved_run, tmp_path):
    path = tmp_path / "w.safetensors"
    convert.main([f"--from={saved_run.workdir}", f"--to={path}"])
    return path


def test_a_converted_checkpoint_measures_what_the_checkpoint_does(
    saved_run, file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(config_io, "load", lambda spec, overrides: saved_run.config)
    capsys.readouterr()
    args = [f"--weights={file}", "--config=tiny.py"]
    assert eval_command.main([*args, f"--json={tmp_path}/result.json"]) == 0
    assert "w.safetensors" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    (wanted,) = evaluate_workdir(saved_run.workdir, "latest")
    assert (result["step"], result["weights"], result["also"]) == (0, "raw", [])
    assert (wanted["step"], wanted["weights"]) == (3, "ema")
    for field in ("split", "count", "top1", "top5", "loss"):
        assert result[field] == wanted[field]
    assert result["count"] == 360
    assert result["file"] == str(file)
    assert set(wanted) < set(result)

    wrapped = tmp_path / "wrapped.safetensors"
    save_file({f"module.{key}": array for key, array in load_file(file).items()}, wrapped)
    assert eval_command.main([f"--weights={wrapped}", "--config=tiny.py", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    note = again.pop("note")
    assert note.startswith(f"weights file {wrapped}: renamed 122, such as module.")
    assert again == {**result, "file": str(wrapped)}
    print_result({**result, "note": note})
    assert note in capsys.readouterr().out


CONFIG = f"--config={REPOSITORY}/configs/quickstart.py"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["--workdir=DIR", "--weights=FILE with --config=FILE"]),
        (["--weights={file}"], ["with --config=FILE"]),
        (["--workdir=x", "--weights={file}", CONFIG], ["either"]),
        (["--weights={file}", CONFIG, "--follow"], ["--follow goes with --workdir"]),
        (["--workdir=x", "--weights_key=ema"], ["--weights_key goes with --weights"]),
        (
            ["--weights={file}", CONFIG, "--weights_key=ema"],
            ["w.safetensors has no state dict 'ema' (--weights_key)", "omit the key"],
        ),
        (["--weights=nope.pth", CONFIG], ["nope.pth does not exist"]),
        (
            ["--weights={file}", CONFIG],
            ["w.safetensors does not fit", "width=0.125", "holds resnet18, width 0.0625"],
        ),
        (
            ["--weights={file}", CONFIG, "--config.model.width=0.0625", "--json=no/x.json"],
            ["--json=no/x.json cannot be written"],
        ),
    ],
)
def test_bad_input_is_one_line(args, words, file, digits_path, fails):
    where = f"--config.data.path={digits_path}"
    fails(eval_command, [where, *(a.format(file=file) for a in args)], *words)
