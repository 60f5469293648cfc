"""Publishing a run: the folder against the run's files, NumPy, scikit-learn and hashlib."""

import hashlib
import json
import shutil
import subprocess

import numpy as np
import pytest
from conftest import tiny_config
from sklearn.metrics import precision_recall_fscore_support

from imagenet_jax import publish
from imagenet_jax import train as loop
from imagenet_jax.baselines import publishing
from imagenet_jax.classify.by_class import predict_split
from imagenet_jax.config import python_files
from imagenet_jax.data import builtin
from imagenet_jax.errors import UserError
from imagenet_jax.training.load_weights import load_weights_file


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run that a test may change."""
    return shutil.copytree(finished.workdir, tmp_path / "run")


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _edit(path, change):
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def test_folder_has_the_files_and_results_of_the_run(finished, baseline):
    for name in ("config.json", "metrics.jsonl"):
        assert (baseline / name).read_text() == (finished.workdir / name).read_text()
    ran = json.loads((finished.workdir / "provenance.json").read_text())
    published = json.loads((baseline / "provenance.json").read_text())
    assert ran == {name: published[name] for name in ran}
    assert published["published_with"]["packages"] == ran["packages"]

    results = json.loads((baseline / "results.json").read_text())
    evaluated = [x for x in _lines(baseline / "metrics.jsonl") if x["split"] == "validation"]
    assert results["checkpoint"] == evaluated[-1]["step"] == 8
    assert [row["weights"] for row in results["results"]] == ["ema", "raw"]
    for row, line in zip(results["results"], evaluated, strict=True):
        assert row == {name: line[name] for name in row}

    fingerprint = json.loads((baseline / "fingerprint.json").read_text())
    assert fingerprint["data"] == ran["data"]
    steps = _lines(finished.workdir / "first_steps.jsonl")
    assert len(steps) == len(fingerprint["first_steps"]) == 8
    for ours, theirs in zip(fingerprint["first_steps"], steps, strict=True):
        assert ours == {name: theirs[name] for name in ("step", "loss", "grad_norm")}


def test_results_by_class_agree_with_sklearn(finished, baseline):
    weights = load_weights_file(baseline / "weights.safetensors", finished.config)
    assert weights.class_names == tuple("0123456789")
    found = predict_split(weights)
    labels, probabilities = found.labels, found.probabilities
    predicted = probabilities.argmax(axis=1)
    table = json.loads((baseline / "results.json").read_text())["by_class"]
    want = precision_recall_fscore_support(labels, predicted, zero_division=0.0)
    for name, column in zip(("precision", "recall", "f1", "images"), want, strict=True):
        np.testing.assert_allclose([row[name] for row in table["classes"]], column)
    wrong = {(i, j): n for i, j, n in table["confusion"]}
    pairs, counts = np.unique(np.stack([labels, predicted]), axis=1, return_counts=True)
    assert wrong == {
        (i, j): n for i, j, n in zip(*pairs.tolist(), counts.tolist(), strict=True) if i != j
    }


def test_checksums_are_those_of_the_bytes_in_the_safetensors_file(baseline):
    """Reads the file by its specification: u64 length, JSON header, data."""
    sums = json.loads((baseline / "fingerprint.json").read_text())["weights"]
    content = (baseline / "weights.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__")
    assert sums["tensors"].keys() == header.keys()
    for name, entry in header.items():
        low, high = entry["data_offsets"]
        digest = hashlib.sha256(content[start + low : start + high]).hexdigest()
        assert sums["tensors"][name] == digest


def test_model_card_has_the_results_and_valid_links(baseline):
    import re

    card = (baseline / "README.md").read_text()
    results = json.loads((baseline / "results.json").read_text())
    for row in results["results"]:
        assert f"| {row['count']} | {row['top1']:.2%} | {row['top5']:.2%} |" in card
    links = re.findall(r"\]\(([^)]+)\)", card)
    assert {"config.json", "weights.safetensors", "fingerprint.json"} <= set(links)
    assert all((baseline / link).is_file() for link in links)
    fingerprint = json.loads((baseline / "fingerprint.json").read_text())
    assert fingerprint["weights"]["all"] in card
    assert f"python -m imagenet_jax.reproduce baselines/{baseline.name} --full" in card
    for line in card.splitlines():  # every row of a table is closed
        if line.startswith("|"):
            assert line.endswith(" |")


def test_checksums_are_published_without_the_weights(finished, tmp_path, baseline):
    out = tmp_path / "tiny"
    publishing.publish(finished.workdir, out, allow_dirty=True, with_weights=False)
    assert not (out / "weights.safetensors").exists()
    assert (out / "fingerprint.json").read_text() == (baseline / "fingerprint.json").read_text()
    assert "Not in this folder" in (out / "README.md").read_text()


def test_checkpoint_without_a_result_is_evaluated(copied, tmp_path):
    history = copied / "metrics.jsonl"
    kept = [x for x in history.read_text().splitlines() if '"weights"' not in x]
    want = [x for x in _lines(history) if x["split"] == "validation"]
    history.write_text("".join(line + "\n" for line in kept))
    publishing.publish(copied, tmp_path / "tiny", checkpoint="8", allow_dirty=True)
    results = json.loads((tmp_path / "tiny" / "results.json").read_text())["results"]
    for row, line in zip(results, want, strict=True):
        assert row == pytest.approx({name: line[name] for name in row})


def _git(folder, *args):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", folder, *identity, *args], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A clean temporary repository that replaces this one."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    _git(folder, "init", "-q")
    (folder / "imagenet_jax").mkdir()
    (folder / "imagenet_jax" / "step.py").write_text("lr = 1\n")
    _git(folder, "add", ".")
    _git(folder, "commit", "-q", "-m", "Begin")
    monkeypatch.setattr(publishing, "CHECKOUT", folder)
    monkeypatch.setattr(python_files, "executed", set())  # other tests load configs in this process
    return folder


def _trained_with(**changes):
    """Return an edit of provenance.json: trained at a clean revision, except for `changes`."""

    def change(tree):
        tree.update({"git_revision": "a" * 40, "git_dirty": False} | changes)

    return change


def test_unidentifiable_code_is_refused(copied, checkout, tmp_path, call_command, fails):
    command = [copied, f"--out={tmp_path}/tiny"]
    changed = {"git_revision": "b" * 40, "git_dirty": False}
    for change, words in (
        (_trained_with(git_dirty=True), ["uncommitted changes", "--allow_dirty"]),
        (_trained_with(git_revision=None), ["outside a git checkout"]),
        (_trained_with(resumed=[changed]), ["several revisions, aaaaaaa, bbbbbbb"]),
        (_trained_with(resumed=[changed | {"git_dirty": True}]), ["uncommitted changes"]),
    ):
        _edit(copied / "provenance.json", change)
        fails(publish, command, *words)
    mine = {"git_dirty": True, "git_untracked": ["configs/mine.py"]}
    _edit(copied / "provenance.json", _trained_with(resumed=[changed | mine]))
    fails(publish, command, "configs/mine.py, which is not tracked by git", "--allow_dirty")
    _edit(copied / "provenance.json", _trained_with(resumed=[]))
    (checkout / "imagenet_jax" / "step.py").write_text("lr = 2\n")
    fails(publish, command, "the code has uncommitted changes", "--allow_dirty")
    assert not (tmp_path / "tiny").exists()
    _git(checkout, "commit", "-q", "-a", "-m", "Change")
    assert call_command(publish, command)[0] == 0
    assert "**with uncommitted changes**" not in (tmp_path / "tiny" / "README.md").read_text()


def test_card_of_a_dirty_run_mentions_the_changes(copied, tmp_path, call_command):
    _edit(copied / "provenance.json", _trained_with(git_dirty=True))
    code, out, _ = call_command(publish, [copied, f"--out={tmp_path}/tiny", "--allow_dirty"])
    assert code == 0 and "top-1" in out
    assert "**with uncommitted changes**" in (tmp_path / "tiny/README.md").read_text()


def test_unfit_runs_and_invalid_flags_are_refused(copied, finished, tmp_path, fails, baseline):
    out = ["--allow_dirty", f"--out={tmp_path}/tiny"]
    fails(publish, [tmp_path, *out], "no config.json")
    fails(publish, [finished.workdir, "--allow_dirty", f"--out={baseline}"], "already exists")
    fails(publish, [finished.workdir, *out, "--checkpoint=7"], "--checkpoint=7", "has 8")
    fails(publish, [finished.workdir], "--out=baselines/NAME")
    fails(publish, [finished.workdir, "--table"], "--table can only be combined with --check")
    fails(publish, [finished.workdir, *out, "--check"], "--check needs --table")

    (copied / "first_steps.jsonl").write_text('{"step": 1, "loss": 1.0, "grad_norm": 1.0}\n')
    fails(publish, [copied, *out], "first 8 steps")
    (copied / "first_steps.jsonl").unlink()
    fails(publish, [copied, *out], "first 8 steps")

    def change_epochs(tree):
        tree["epochs"] = 0.5

    _edit(copied / "config.json", change_epochs)
    fails(publish, [copied, *out], "not finished: step 8 of 15")
    assert not list(tmp_path.glob("*tiny*"))


def test_different_images_are_refused(finished, tmp_path, fails):
    other = tmp_path / "digits" / "1.0.0"
    builtin.write_digits(other)
    features = other / "features.json"
    features.write_text(features.read_text() + " ")
    command = [finished.workdir, "--allow_dirty", f"--out={tmp_path}/tiny"]
    fails(publish, [*command, f"--config.data.path={other}"], str(other), "--config.data.path=DIR")


def test_recorded_results_that_cannot_be_measured_here_are_refused(copied, tmp_path, fails):
    lines = _lines(copied / "metrics.jsonl")
    for line in lines:
        if line.get("weights") == "ema":
            line["top1"] = 0.99
    (copied / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    fails(publish, [copied, "--allow_dirty", f"--out={tmp_path}/tiny"], "metrics.jsonl", "0.9900")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_interrupted_publish_leaves_nothing(finished, tmp_path, monkeypatch, error):
    def interrupt(tensors, path, names):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(publishing.weight_file, "save", interrupt)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else UserError):
        publishing.publish(finished.workdir, tmp_path / "b" / "tiny", allow_dirty=True)
    assert list((tmp_path / "b").iterdir()) == []


def test_remains_of_a_killed_publish_are_replaced(finished, tmp_path):
    left = tmp_path / ".tiny.part"
    left.mkdir()
    (left / "old.txt").write_text("half")
    publishing.publish(finished.workdir, tmp_path / "tiny", allow_dirty=True)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    assert not (tmp_path / "tiny" / "old.txt").exists()


def test_run_that_was_stopped_early_is_refused(digits_path, tmp_path, fails):
    loop.train(tiny_config(digits_path, "small_cnn"), tmp_path / "run", stop_after=2)
    command = [tmp_path / "run", "--allow_dirty", f"--out={tmp_path}/tiny"]
    fails(publish, command, "not finished: step 2 of 8")
