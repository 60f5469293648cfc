"""Reproducing a published run: what passes, and what each change is found by."""

import json
import shutil

import pytest

from imagenet_jax import reproduce as door
from imagenet_jax.baselines.folder import read
from imagenet_jax.baselines.reproduction import _config_of
from imagenet_jax.training import losses


@pytest.fixture
def spoiled(baseline, tmp_path):
    """spoiled(name, change): a copy of the baseline in which `change` edited a JSON file."""

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
def reproduce(call_door):
    """reproduce(folder, ...): (exit code, the last line)."""

    def run(*args):
        code, out, err = call_door(door, args)
        assert not err, err
        return code, out.splitlines()[-1]

    return run


def _other_version(tree):
    """Published with another jax: the bits need not agree."""
    tree["packages"]["jax"] = "0.1"


def test_the_same_machine_gives_the_same_bits_to_the_end(baseline, reproduce, tmp_path):
    """With other threads; the weights too."""
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


def test_a_changed_value_is_named_with_its_step(spoiled, reproduce):
    before = []

    def change(tree):
        value = tree["first_steps"][1]
        before.append(value["grad_norm"])
        value["grad_norm"] *= 1 + 2**-22

    code, last = reproduce(spoiled("fingerprint.json", change), "--steps=2")
    assert code == 1
    assert last.startswith("FAIL tiny: step 2, grad_norm: published ")
    assert f"here {before[0]!r} (the bits have to agree)" in last


@pytest.mark.full
def test_a_changed_weight_is_named(spoiled, reproduce):
    def change(tree):
        tree["weights"]["tensors"]["layer1.0.conv2.weight"] = "0" * 64

    code, last = reproduce(spoiled("fingerprint.json", change), "--full")
    assert code == 1
    assert last.startswith("FAIL tiny: step 8, SHA-256 of layer1.0.conv2.weight: published '000")


@pytest.mark.parametrize("exact", [pytest.param(True, marks=pytest.mark.full), False])
def test_another_seed_is_found_at_the_first_step(spoiled, reproduce, exact, monkeypatch):
    folder = spoiled("config.json", lambda tree: tree.update(seed=1))
    if not exact:
        spoiled("provenance.json", _other_version)
    code, last = reproduce(folder, "--steps=1")
    assert code == 1
    assert last.startswith("FAIL tiny: step 1, loss: published ")
    assert ("relative difference" in last) != exact


@pytest.mark.full
def test_another_learning_rate_is_found_at_the_step_after_the_first(spoiled, reproduce):
    folder = spoiled("config.json", lambda tree: tree["optim"].update(base_lr=0.0505))
    code, last = reproduce(folder, "--steps=2")
    assert code == 1
    assert last.startswith("FAIL tiny: step 2, loss: published ")


@pytest.mark.full
def test_other_code_is_found(baseline, reproduce, monkeypatch):
    per_image = losses.per_image
    monkeypatch.setattr(losses, "per_image", lambda *args: per_image(*args) * 1.0001)
    code, last = reproduce(baseline, "--steps=1")
    assert code == 1
    assert last.startswith("FAIL tiny: step 1, loss: published ")


@pytest.mark.full
def test_rounding_passes_where_the_versions_differ_and_the_accuracy_counts(
    spoiled, call_door, baseline
):
    folder = spoiled("provenance.json", _other_version)

    def round_otherwise(tree):
        for line in tree["first_steps"]:
            line["loss"] *= 1 + 2**-22
        tree["weights"]["tensors"]["conv1.weight"] = "0" * 64

    spoiled("fingerprint.json", round_otherwise)
    code, out, _ = call_door(door, [folder, "--full"])
    lines = out.splitlines()
    assert code == 0
    assert any(line.startswith("jax: 0.1 in the baseline, ") for line in lines)
    assert lines[-1].startswith("PASS tiny: loss and gradient norm of 8 steps agree within the")
    published = json.loads((baseline / "results.json").read_text())["results"][0]["top1"]
    assert f"top-1 of step 8 is {published:.2%}, published {published:.2%}" in lines[-1]


def test_another_accuracy_is_found_where_the_versions_differ(spoiled, reproduce):
    spoiled("provenance.json", _other_version)
    folder = spoiled("results.json", lambda tree: tree["results"][0].update(top1=0.5))
    code, last = reproduce(folder, "--full")
    assert code == 1
    assert last.startswith("FAIL tiny: step 8, top1: published 0.5, here ")


def test_other_data_is_refused(spoiled, fails):
    folder = spoiled("fingerprint.json", lambda tree: tree["data"].update(train="0" * 16))
    fails(door, [folder], "'train'", "0" * 16, "--config.data.path=DIR")


def test_a_damaged_or_missing_baseline_is_named(spoiled, baseline, tmp_path, fails):
    fails(door, [tmp_path], "no published baseline", "imagenet_jax.publish")
    fails(door, [tmp_path / "none"], "no published baseline")
    folder = spoiled("fingerprint.json", lambda tree: tree.pop("first_steps"))
    fails(door, [folder], "fingerprint.json is damaged", "'first_steps'")
    (folder / "fingerprint.json").write_text("{")
    fails(door, [folder], "fingerprint.json is damaged")
    shutil.copy(baseline / "fingerprint.json", folder)
    (folder / "metrics.jsonl").unlink()
    fails(door, [folder], "metrics.jsonl is missing")


def test_what_makes_no_sense_is_refused(baseline, finished, tmp_path, fails):
    fails(door, [baseline, "--steps=9"], "--steps=9", "first 8", "--full")
    fails(door, [baseline, "--steps=0"], "--steps=0")
    fails(door, [baseline, "--steps=1", "--full"], "either --steps=N or --full")
    fails(door, [baseline, "--config.optim.base_lr=1"], "config.optim.base_lr changes what is")
    fails(door, [baseline, "--config.optim.bass_lr=1"], "did you mean config.optim.base_lr")
    before = sorted(finished.workdir.iterdir())
    fails(door, [baseline, f"--workdir={finished.workdir}"], "holds another run")
    assert sorted(finished.workdir.iterdir()) == before


def test_settings_are_of_this_run_alone(baseline):
    """The baseline is compared with as it was read, and its curves go nowhere else."""
    published = read(baseline)
    published.config.log.wandb = "mine"
    config = _config_of(published, [("mesh.fsdp", "2")])
    assert (config.mesh.fsdp, config.log.wandb) == (2, "")
    assert (published.config.mesh.fsdp, published.config.log.wandb) == (1, "mine")
