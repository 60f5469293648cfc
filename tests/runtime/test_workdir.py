"""Only an evaluation with the settings and data of the run is written to `STEP.json`."""

import json
import shutil

import pytest

from imagenet_jax import eval as eval_command
from imagenet_jax.classify import evaluate_weights
from imagenet_jax.classify.evaluate_weights import write_result
from imagenet_jax.errors import UserError
from imagenet_jax.runtime.workdir import explain_variant, read_config, require_run_settings
from imagenet_jax.training.experiment import make_evaluation

RESULT = {"weights": "ema", "count": 360, "top1": 0.5, "top5": 0.75, "loss": 1.25}


@pytest.fixture
def workdir(saved_run, tmp_path):
    return shutil.copytree(
        saved_run.workdir, tmp_path / "run", ignore=shutil.ignore_patterns("eval")
    )


def write(workdir, *overrides):
    what = make_evaluation(read_config(workdir, overrides))
    return write_result(workdir, 3, what, [RESULT, RESULT | {"weights": "raw"}])


def test_a_variant_does_not_change_the_result_of_the_run(workdir, digits_path):
    own = write(workdir)
    assert [p.name for p in (workdir / "eval").iterdir()] == ["3.json"]
    keys = ["step", "split", "weights", "count", "top1", "top5", "loss"]
    assert list(own)[:7] == keys
    assert own["measured"]["eval.resize"] == 16
    assert own["measured"]["data"] == make_evaluation(read_config(workdir)).source.fingerprint
    content = (workdir / "eval" / "3.json").read_text()
    assert json.loads(content)["measured"]["data.mean"] == list(own["measured"]["data.mean"])

    moved = workdir.parent / "digits" / "1.0.0"
    moved.parent.mkdir()
    moved.symlink_to(digits_path)
    for same in (("data.path", str(moved)), ("eval.batch_size", "40"), ("optim.base_lr", "9")):
        write(workdir, same)
    assert [p.name for p in (workdir / "eval").iterdir()] == ["3.json"]

    large = [("eval.resize", "20"), ("eval.image_size", "18")]
    assert write(workdir, *large)["variant"] == "size18-resize20"
    write(workdir, ("data.interpolation", "bicubic"), ("eval.flip", "true"))
    write(workdir, ("model.dtype", "bfloat16"))
    other = write(workdir, ("data.eval_split", "validation[:50]"))["measured"]["data"]
    write(workdir, ("data.mean", "(0.5,0.5,0.5)"))
    write(workdir, ("data.mean", "(0.5,0.5,0.4)"))
    names = {p.name for p in (workdir / "eval").iterdir()}
    mean = sorted(name for name in names if name.startswith("3-mean-"))
    assert len(mean) == 2
    assert names == {
        "3.json", "3-size18-resize20.json", "3-flipTrue-bicubic.json", "3-dtypebfloat16.json",
        f"3-data-{other[:8]}.json", *mean,
    }  # fmt: skip
    assert (workdir / "eval" / "3.json").read_text() == content


def test_commands_that_show_the_results_of_a_run_refuse_other_settings(workdir):
    require_run_settings(workdir, [("eval.batch_size", "8"), ("data.path", "/x")], "report")
    with pytest.raises(UserError, match=r"config\.eval\.flip.*imagenet_jax\.eval"):
        require_run_settings(workdir, [("eval.flip", "true")], "report")


def test_the_output_explains_why_a_result_is_a_variant(workdir, tmp_path, monkeypatch, capsys):
    large = write(workdir, ("eval.resize", "20"))
    why = explain_variant(workdir, large["measured"])
    assert why == "never reported as the run's result: config.eval.resize = 20, not 16"
    for result, count in ((large, 1), (write(workdir), 0)):
        monkeypatch.setattr(evaluate_weights, "evaluate_workdir", lambda *_, r=result, **__: [r])
        eval_command.main([f"--workdir={workdir}"])
        assert capsys.readouterr().out.count(f"{why}\n") == count
    # The same images, but in a folder.
    source = make_evaluation(read_config(workdir)).source
    for i in range(len(source)):
        record = source[i]
        directory = tmp_path / "folder" / "validation" / source.class_names[record["label"]]
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{i}.png").write_bytes(record["image"])
    stored = [("data.source", "auto"), ("data.path", str(tmp_path / "folder"))]
    folder = write(workdir, *stored)
    assert folder["variant"].startswith("data-")
    assert explain_variant(workdir, folder["measured"]) == (
        "never reported as the run's result: the images, or the way they are stored, differ from "
        "the run's"
    )
