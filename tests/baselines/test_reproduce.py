"""Reproducing a published run: what passes, and how each change is detected."""

import json
import shutil

import pytest

from imagenet_jax import reproduce as command
from imagenet_jax.baselines.folder import read
from imagenet_jax.baselines.reproduction import make_config
from imagenet_jax.training import losses


@pytest.fixture
def changed(baseline, tmp_path):
    """changed(name, change): a copy of the baseline in which `change` edited a JSON file."""

    def edit(name, change):
        folder = tmp_path / "tiny"
        if not folder.exists():
            shutil.copytree(baseline, folder)
        tree = json.loads((folder / name).read_text())
        change(tree)
        (folder / name).write_text(json.dumps(tree))
        return folder

    return edit


@pytest.fixture
def reproduce(call_command):
    """reproduce(folder, ...): (exit code, the last line)."""

    def run(*args):
        code, out, err = call_command(command, args)
        assert not err, err
        return code, out.splitlines()[-1]

    return run


def _other_version(tree):
    """Published with another version of jax, so the bits need not agree."""
    tree["packages"]["jax"] = "0.1"


def test_same_machine_gives_identical_bits_to_the_end(baseline, reproduce, tmp_path):
    """Also the weights, and with another number of threads."""
    workdir = tmp_path / "again"
    code, last = reproduce(baseline, "--full", f"--workdir={workdir}", "--config.data.threads=1")
    fingerprint = json.loads((baseline / "fingerprint.json").read_text())
    assert (code, last) == (
        0,
        "PASS tiny: loss and gradient norm of 8 steps agree bit for bit; so do the weights of "
        f"step 8, SHA-256 {fingerprint['weights']['all']}",
    )
    got = [json.loads(line) for line in (workdir / "first_steps.jsonl").read_text().splitlines()]
    for ours, theirs in zip(got, fingerprint["first_steps"], strict=True):
        assert theirs == {name: ours[name] for name in theirs}


def test_changed_value_is_named_with_its_step(changed, reproduce):
    before = []

    def change(tree):
        value = tree["first_steps"][1]
        before.append(value["grad_norm"])
        value["grad_norm"] *= 1 + 2**-22

    code, last = reproduce(changed("fingerprint.json", change), "--steps=2")
    assert code == 1
    assert last.startswith("FAIL tiny: step 2, grad_norm: published ")
    assert f"here {before[0]!r} (must be identical bit for bit)" in last


@pytest.mark.full
def test_changed_weight_is_named(changed, reproduce):
    def change(tree):
        tree["weights"]["tensors"]["conv2.weight"] = "0" * 64

    code, last = reproduce(changed("fingerprint.json", change), "--full")
    assert code == 1
    assert last.startswith("FAIL tiny: step 8, SHA-256 of conv2.weight: published '000")


@pytest.mark.parametrize("exact", [pytest.param(True, marks=pytest.mark.full), False])
def test_another_seed_is_detected_at_the_first_step(changed, reproduce, exact, monkeypatch):
    folder = changed("config.json", lambda tree: tree.update(seed=1))
    if not exact:
        changed("provenance.json", _other_version)
    code, last = reproduce(folder, "--steps=1")
    assert code == 1
    assert last.startswith("FAIL tiny: step 1, loss: published ")
    assert ("relative difference" in last) != exact


@pytest.mark.full
def test_another_learning_rate_is_detected_at_the_second_step(changed, reproduce):
    folder = changed("config.json", lambda tree: tree["optim"].update(base_lr=0.0505))
    code, last = reproduce(folder, "--steps=2")
    assert code == 1
    assert last.startswith("FAIL tiny: step 2, loss: published ")


@pytest.mark.full
def test_changed_code_is_detected(baseline, reproduce, monkeypatch):
    per_image = losses.per_image
    monkeypatch.setattr(losses, "per_image", lambda *args: per_image(*args) * 1.0001)
    code, last = reproduce(baseline, "--steps=1")
    assert code == 1
    assert last.startswith("FAIL tiny: step 1, loss: published ")


@pytest.mark.full
def test_rounding_passes_with_other_versions_and_the_accuracy_is_compared(
    changed, call_command, baseline
):
    folder = changed("provenance.json", _other_version)

    def round_differently(tree):
        for line in tree["first_steps"]:
            line["loss"] *= 1 + 2**-22
        tree["weights"]["tensors"]["conv1.weight"] = "0" * 64

    changed("fingerprint.json", round_differently)
    code, out, _ = call_command(command, [folder, "--full"])
    lines = out.splitlines()
    assert code == 0
    assert any(line.startswith("jax: 0.1 in the baseline, ") for line in lines)
    assert lines[-1].startswith("PASS tiny: loss and gradient norm of 8 steps agree within the")
    published = json.loads((baseline / "results.json").read_text())["results"][0]["top1"]
    assert f"top-1 of step 8 is {published:.2%}, published {published:.2%}" in lines[-1]


def test_another_accuracy_is_detected_with_other_versions(changed, reproduce):
    changed("provenance.json", _other_version)
    folder = changed("results.json", lambda tree: tree["results"][0].update(top1=0.5))
    code, last = reproduce(folder, "--full")
    assert code == 1
    assert last.startswith("FAIL tiny: step 8, top1: published 0.5, here ")


def test_different_data_is_refused(changed, fails):
    folder = changed("fingerprint.json", lambda tree: tree["data"].update(train="0" * 16))
    fails(command, [folder], "'train'", "0" * 16, "--config.data.path=DIR")


def test_damaged_or_missing_baseline_is_named(changed, baseline, tmp_path, fails):
    fails(command, [tmp_path], "not a published baseline", "imagenet_jax.publish")
    fails(command, [tmp_path / "none"], "not a published baseline")
    folder = changed("fingerprint.json", lambda tree: tree.pop("first_steps"))
    fails(command, [folder], "fingerprint.json is damaged", "'first_steps'")
    (folder / "fingerprint.json").write_text("{")
    fails(command, [folder], "fingerprint.json is damaged")
    shutil.copy(baseline / "fingerprint.json", folder)
    (folder / "metrics.jsonl").unlink()
    fails(command, [folder], "metrics.jsonl is missing")


def test_invalid_flags_are_refused(baseline, finished, tmp_path, fails):
    fails(command, [baseline, "--steps=9"], "--steps=9", "first 8", "--full")
    fails(command, [baseline, "--steps=0"], "--steps=0")
    fails(command, [baseline, "--steps=1", "--full"], "either --steps=N or --full")
    fails(command, [baseline, "--config.optim.base_lr=1"], "config.optim.base_lr changes what is")
    fails(command, [baseline, "--config.optim.bass_lr=1"], "did you mean config.optim.base_lr")
    before = sorted(finished.workdir.iterdir())
    fails(command, [baseline, f"--workdir={finished.workdir}"], "has another run")
    assert sorted(finished.workdir.iterdir()) == before


def test_overrides_do_not_change_the_published_config(baseline):
    """Nor does the new run log to external services."""
    published = read(baseline)
    published.config.log.wandb = "mine"
    config = make_config(published, [("mesh.fsdp", "2")])
    assert (config.mesh.fsdp, config.log.wandb) == (2, "")
    assert (published.config.mesh.fsdp, published.config.log.wandb) == (1, "mine")
