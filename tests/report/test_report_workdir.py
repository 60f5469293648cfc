"""Reports on real workdirs: numbers equal to those of evaluation, and missing parts."""

import json
import os
import shutil
import socket

import numpy as np
import pytest

from imagenet_jax import progress
from imagenet_jax.classify.evaluate_weights import evaluate_workdir
from imagenet_jax.data import sources
from imagenet_jax.report import __main__ as report
from imagenet_jax.report import predictions
from imagenet_jax.report.read import read_run
from imagenet_jax.runtime.workdir import run_settings


@pytest.fixture(autouse=True)
def no_progress(monkeypatch):
    """Let slow machines print no progress on standard error."""
    monkeypatch.setattr(progress, "_SLOW_SECONDS", 1e6)
    monkeypatch.setattr(progress, "_FIRST_LINE", 1e6)


@pytest.fixture(scope="module")
def passes():
    """Return the weights of each call of `predict_split` so far."""
    return []


@pytest.fixture(scope="module")
def run(finished, passes):
    """Return the finished run, read."""
    once = predictions.predict_split

    def counted(weights, fingerprint):
        passes.append(weights.origin)
        return once(weights, fingerprint)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictions, "predict_split", counted)
        return read_run(finished.workdir, "tiny", "latest", [])


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished.workdir, tmp_path / "copy")


def without_checkpoints(workdir):
    shutil.rmtree(workdir / "checkpoints")
    return workdir


def test_one_pass_gives_the_same_metrics_as_evaluation(run, copy, passes):
    (result,) = evaluate_workdir(copy, "latest")
    predicted = run.predicted
    assert (predicted.step, predicted.weights) == (result["step"], result["weights"])
    assert predicted.images == result["count"]
    assert predicted.top1 == pytest.approx(result["top1"])
    assert predicted.top5 == pytest.approx(result["top5"])
    assert predicted.wrong == round((1 - result["top1"]) * result["count"])
    assert len(passes) == 1


def test_samples_are_records_of_the_split(run, finished):
    source = sources.open_source(finished.config.data, finished.config.data.eval_split)
    labels = {source[i]["id"]: source.class_names[source[i]["label"]] for i in range(len(source))}
    mistakes = run.predicted.mistakes
    assert len(mistakes) == min(24, run.predicted.wrong) > 0
    assert all(labels[s.name] == s.true != s.predicted for s in mistakes)
    assert (np.diff([s.confidence for s in mistakes]) <= 0).all()
    confusion, names = run.predicted.by_class.confusion, source.class_names
    largest = np.sort(confusion[~np.eye(10, dtype=bool)])[::-1]
    for pair, count in zip(run.predicted.pairs, largest, strict=False):
        true, other = names.index(pair.true), names.index(pair.predicted)
        assert pair.images == confusion[true, other] == count
        assert pair.fraction == pytest.approx(count / confusion[true].sum())
        assert all(
            labels[s.name] == pair.true != s.predicted == pair.predicted for s in pair.samples
        )


def test_explanations_show_images_of_the_split(run):
    explained = run.explained
    assert explained.filters.images.shape[0] == explained.filters.channels == 2
    assert [m.images.dtype for m in explained.maps] == [np.uint8] * 2
    side = explained.cams[0][0].pixels.shape
    assert all(overlay.shape == side for _, overlay in explained.cams)
    assert any(s.is_right for s, _ in explained.cams) or run.predicted.top1 == 0


def test_the_command_writes_page_figures_and_markdown(finished, copy, tmp_path, call_command):
    config = json.loads((copy / "config.json").read_text())
    config["seed"] = 5
    (without_checkpoints(copy) / "config.json").write_text(json.dumps(config))
    out, png, text = tmp_path / "a/r.html", tmp_path / "png", tmp_path / "r.md"
    code, printed, err = call_command(
        report,
        [finished.workdir, copy, f"--out={out}", f"--png={png}", f"--markdown={text}"],
    )
    assert (code, err) == (0, "")
    assert str(out) in printed
    assert out.stat().st_size < 7e6
    assert "| seed | 0 | 5 |" in text.read_text()
    assert {"curves.png", "gradcam_run.png", "classes.png"} <= {p.name for p in png.iterdir()}
    assert not list(tmp_path.rglob(".r.*"))  # no partial files


def test_without_the_data_only_the_images_are_missing(copy, digits_path, tmp_path, call_command):
    config = json.loads((copy / "config.json").read_text())
    config["data"] |= {"path": str(tmp_path / "gone"), "source": "tfds"}
    (copy / "config.json").write_text(json.dumps(config))
    out = tmp_path / "r.html"
    code, printed, _ = call_command(report, [copy, f"--out={out}"])
    assert code == 0
    assert "--config.data.path=" in printed
    page = out.read_text()
    assert page.count("Not available: ") == 7
    assert "--config.data.path=" in page
    assert '"key":"loss"' in page
    back = read_run(copy, "copy", "latest", [("data.path", str(digits_path))])
    assert back.missing == ""
    assert back.predicted.images == 360


def test_unfinished_runs(copy, tmp_path):
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    torn = [line for line in lines if json.loads(line)["step"] <= 4]
    (copy / "metrics.jsonl").write_text("\n".join(torn) + '\n{"step": 6, "spl')
    stopped = read_run(without_checkpoints(copy), "copy", "latest", [])
    assert stopped.metrics == [json.loads(line) for line in torn]
    assert stopped.status == "stopped at step 4 of 8"
    assert "no checkpoint" in stopped.missing
    mark = {"pid": os.getpid(), "host": socket.gethostname()}
    (copy / "running.json").write_text(json.dumps(mark))
    assert read_run(copy, "copy", "latest", []).status == "training now, step 4 of 8"
    (copy / "running.json").unlink()
    (copy / "metrics.jsonl").write_text("")
    empty = read_run(copy, "copy", "latest", [])
    assert (empty.status, empty.evaluations) == ("nothing logged yet", [])


def test_later_evaluations_are_shown(copy):
    (copy / "eval").mkdir(exist_ok=True)
    one = {"weights": "ema", "count": 9, "top1": 0.125, "top5": 0.5, "loss": 2.5}
    record = {"step": 4, "split": "validation"} | one | {"also": [one | {"weights": "raw"}]}
    (copy / "eval" / "4.json").write_text(json.dumps(record))
    found = read_run(without_checkpoints(copy), "copy", "latest", []).evaluations
    assert [(e["step"], e["weights"]) for e in found] == [
        (4, "ema"), (4, "raw"), (8, "ema"), (8, "raw"),
    ]  # fmt: skip
    assert found[0] == {"step": 4, "split": "validation"} | one


def test_evaluations_with_other_settings_or_data_are_left_out(copy):
    one = {"weights": "ema", "count": 9, "top1": 0.125, "top5": 0.5, "loss": 2.5, "also": []}
    before = read_run(without_checkpoints(copy), "copy", "latest", []).evaluations
    own = run_settings(copy)
    (copy / "eval").mkdir(exist_ok=True)
    for step, name, what in (
        (4, "4", own | {"eval.resize": 99}),
        (5, "5", own | {"data": "0123456789abcdef"}),
        (6, "6-resize99", own | {"eval.resize": 99}),
        (7, "7", own),
    ):
        record = {"step": step, "split": "validation", "measured": what} | one
        (copy / "eval" / f"{name}.json").write_text(json.dumps(record))
    found = read_run(copy, "copy", "latest", []).evaluations
    assert [e for e in found if e not in before] == [found[[e["step"] for e in found].index(7)]]
    assert len(found) == len(before) + 1


def test_predictions_of_other_images_are_refused(copy):
    back = read_run(copy, "copy", "latest", [("data.eval_split", "validation[:50]")])
    assert back.predicted is None
    assert "differs from the images that the run was evaluated on, or" in back.missing


def test_progress_is_shown(finished, tmp_path, call_command, monkeypatch):
    monkeypatch.setattr(progress, "_SLOW_SECONDS", 0)
    monkeypatch.setattr(progress, "_FIRST_LINE", 0)
    markdown = tmp_path / "r.md"
    code, printed, err = call_command(report, [finished.workdir, f"--markdown={markdown}"])
    assert (code, printed) == (0, f"reading {finished.workdir}\n{markdown}\n")
    for line in ("loading the weights ...", "computing feature maps and Grad-CAM ..."):
        assert line in err.splitlines()
    assert "classifying validation: " in err


def test_user_errors(copy, tmp_path, fails):
    out = f"--out={tmp_path / 'r.html'}"
    fails(report, [tmp_path, out], "no config.json", str(tmp_path))
    fails(report, [copy], "--out=")
    fails(report, [copy, f"--out={tmp_path}"], "is a folder")
    fails(report, [copy, copy / "../copy", out], "twice")
    fails(report, [copy, out, "--checkpoint=5"], "--checkpoint=5", "8")
    fails(report, [copy, out, "--config.optim.peak=1"], "optim.peak")
    fails(report, [copy, out, "--config.eval.resize=20"], "eval.resize", "imagenet_jax.eval")
    fails(report, [copy, "--out=/proc/1/r.html"], "cannot be written")
    (copy / "eval").mkdir(exist_ok=True)
    (copy / "eval" / "4.json").write_text("{}")
    fails(report, [copy, out], "eval/4.json", "move it away")
    (copy / "metrics.jsonl").write_text("[]\n")
    fails(report, [copy, out], "metrics.jsonl, line 1")
