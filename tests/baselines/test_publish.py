"""Publishing a run: what the folder says, against the run's files, NumPy, sklearn and hashlib."""

import hashlib
import json
import shutil
import subprocess

import numpy as np
import pytest
from conftest import tiny_config
from sklearn.metrics import precision_recall_fscore_support

from imagenet_jax import config as config_io
from imagenet_jax import publish as door
from imagenet_jax import train as loop
from imagenet_jax.baselines import publishing
from imagenet_jax.classify.images import predict_split
from imagenet_jax.data import digits
from imagenet_jax.errors import UserError
from imagenet_jax.training.load_weights import of_file


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, to spoil."""
    return shutil.copytree(finished.workdir, tmp_path / "run")


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _edit(path, change):
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def test_the_folder_says_what_the_run_wrote(finished, baseline):
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


def test_by_class_is_sklearns_report_of_the_published_weights(finished, baseline):
    weights = of_file(baseline / "weights.safetensors", finished.config)
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


def test_checksums_are_of_the_bytes_in_the_safetensors_file(baseline):
    """The file read by its specification: u64 length, JSON header, data."""
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


def test_model_card_has_the_numbers_and_links_that_lead_somewhere(baseline):
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
    for line in card.splitlines():  # every table has as many cells in each row
        if line.startswith("|"):
            assert line.endswith(" |")


def test_without_weights_there_are_checksums_still(finished, tmp_path, baseline):
    out = tmp_path / "tiny"
    publishing.publish(finished.workdir, out, allow_dirty=True, with_weights=False)
    assert not (out / "weights.safetensors").exists()
    assert (out / "fingerprint.json").read_text() == (baseline / "fingerprint.json").read_text()
    assert "Not in this folder" in (out / "README.md").read_text()


def test_a_checkpoint_that_was_not_evaluated_is_evaluated(copied, tmp_path):
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
    """A clean scratch repository in the place of this one."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    _git(folder, "init", "-q")
    (folder / "imagenet_jax").mkdir()
    (folder / "imagenet_jax" / "step.py").write_text("lr = 1\n")
    _git(folder, "add", ".")
    _git(folder, "commit", "-q", "-m", "Begin")
    monkeypatch.setattr(publishing, "CHECKOUT", folder)
    monkeypatch.setattr(config_io, "executed", set())  # other tests load configs in this process
    return folder


def _trained_with(**changes):
    """An edit of provenance.json: trained at a clean revision but for `changes`."""

    def change(tree):
        tree.update({"git_revision": "a" * 40, "git_dirty": False} | changes)

    return change


def test_code_that_nobody_can_know_is_refused(copied, checkout, tmp_path, call_door, fails):
    command = [copied, f"--out={tmp_path}/tiny"]
    changed = {"git_revision": "b" * 40, "git_dirty": False}
    for change, words in (
        (_trained_with(git_dirty=True), ["not committed", "--allow_dirty"]),
        (_trained_with(git_revision=None), ["outside a git checkout"]),
        (_trained_with(resumed=[changed]), ["several revisions, aaaaaaa, bbbbbbb"]),
        (_trained_with(resumed=[changed | {"git_dirty": True}]), ["not committed"]),
    ):
        _edit(copied / "provenance.json", change)
        fails(door, command, *words)
    mine = {"git_dirty": True, "git_untracked": ["configs/mine.py"]}
    _edit(copied / "provenance.json", _trained_with(resumed=[changed | mine]))
    fails(door, command, "configs/mine.py, which git does not know", "--allow_dirty")
    _edit(copied / "provenance.json", _trained_with(resumed=[]))
    (checkout / "imagenet_jax" / "step.py").write_text("lr = 2\n")
    fails(door, command, "changes that are not committed", "--allow_dirty")
    assert not (tmp_path / "tiny").exists()
    _git(checkout, "commit", "-q", "-a", "-m", "Change")
    assert call_door(door, command)[0] == 0
    assert "**with changes" not in (tmp_path / "tiny" / "README.md").read_text()


def test_changes_are_told_in_the_card_of_a_dirty_run(copied, tmp_path, call_door):
    _edit(copied / "provenance.json", _trained_with(git_dirty=True))
    code, out, _ = call_door(door, [copied, f"--out={tmp_path}/tiny", "--allow_dirty"])
    assert code == 0 and "top-1" in out
    assert "**with changes that were not committed**" in (tmp_path / "tiny/README.md").read_text()


def test_what_is_not_fit_to_be_published_is_refused(copied, finished, tmp_path, fails, baseline):
    out = ["--allow_dirty", f"--out={tmp_path}/tiny"]
    fails(door, [tmp_path, *out], "no config.json")
    fails(door, [finished.workdir, "--allow_dirty", f"--out={baseline}"], "is there already")
    fails(door, [finished.workdir, *out, "--checkpoint=7"], "--checkpoint=7", "has 8")
    fails(door, [finished.workdir], "--out=baselines/NAME")
    fails(door, [finished.workdir, "--table"], "--table stands alone")
    fails(door, [finished.workdir, *out, "--check"], "--check goes with --table")

    (copied / "first_steps.jsonl").write_text('{"step": 1, "loss": 1.0, "grad_norm": 1.0}\n')
    fails(door, [copied, *out], "first 8 steps")
    (copied / "first_steps.jsonl").unlink()
    fails(door, [copied, *out], "first 8 steps")

    def other_number(tree):
        tree["epochs"] = 0.5

    _edit(copied / "config.json", other_number)
    fails(door, [copied, *out], "not finished: step 8 of 15")
    assert not list(tmp_path.glob("*tiny*"))


def test_other_images_are_refused(finished, tmp_path, fails):
    other = tmp_path / "digits" / "1.0.0"
    digits.prepare(other)
    features = other / "features.json"
    features.write_text(features.read_text() + " ")
    command = [finished.workdir, "--allow_dirty", f"--out={tmp_path}/tiny"]
    fails(door, [*command, f"--config.data.path={other}"], str(other), "--config.data.path=DIR")


def test_results_of_another_machine_that_are_not_found_here_are_refused(copied, tmp_path, fails):
    lines = _lines(copied / "metrics.jsonl")
    for line in lines:
        if line.get("weights") == "ema":
            line["top1"] = 0.99
    (copied / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    fails(door, [copied, "--allow_dirty", f"--out={tmp_path}/tiny"], "metrics.jsonl", "0.9900")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_publish_leaves_nothing(finished, tmp_path, monkeypatch, error):
    def interrupted(tensors, path, names):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(publishing.torch_names, "save", interrupted)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else UserError):
        publishing.publish(finished.workdir, tmp_path / "b" / "tiny", allow_dirty=True)
    assert list((tmp_path / "b").iterdir()) == []


def test_what_a_killed_publish_left_is_replaced(finished, tmp_path):
    left = tmp_path / ".tiny.part"
    left.mkdir()
    (left / "old.txt").write_text("half")
    publishing.publish(finished.workdir, tmp_path / "tiny", allow_dirty=True)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    assert not (tmp_path / "tiny" / "old.txt").exists()


def test_a_run_that_was_asked_to_end_early_is_not_finished(digits_path, tmp_path, fails):
    loop.train(tiny_config(digits_path), tmp_path / "run", stop_after=2)
    command = [tmp_path / "run", "--allow_dirty", f"--out={tmp_path}/tiny"]
    fails(door, command, "not finished: step 2 of 8")
