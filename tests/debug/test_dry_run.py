"""The dry run: the recipe's published numbers, the learning-rate curve, the cost of a step."""

import re

import jax
import pytest
from conftest import REPOSITORY

from imagenet_jax import config as config_io
from imagenet_jax import main as command
from imagenet_jax.debug import dry_run
from imagenet_jax.debug.recipe import describe_recipe
from imagenet_jax.errors import UserError
from imagenet_jax.training import schedules
from imagenet_jax.training.experiment import make_experiment


def _dry_run(args, capsys):
    assert command.main([*args, "--dry_run"]) == 0
    return capsys.readouterr().out


def test_resnet50_states_the_published_numbers(capsys, monkeypatch):
    monkeypatch.setattr(dry_run, "_cost_lines", lambda run: [])  # minutes of compilation
    out = _dry_run(
        [f"--config={REPOSITORY}/configs/resnet50.py:goyal8k", "--config.data.source=synthetic"],
        capsys,
    )
    rows = dict(re.findall(r"│ (\S.*?) +│ (.*?) +│", out))
    text = " ".join(out.replace("│", " ").split())
    assert "resnet50, 25,557,032 parameters" in text
    assert rows["training images"] == "1,281,167 in 1,000 classes"
    # 90 * 1,281,167 / 8,192, rounded up.
    assert "14,076 steps of 8,192 images" in text
    assert "3.2 (linear scaling of 0.1 at 256)" in text  # 0.1 * 8192 / 256
    # Convolutions and the last layer; 53,120 scales and biases of norms and 1,000 biases not.
    assert "0.0001 (l2) on 25,502,912 parameters, none on 54,120" in text
    assert "sgd, momentum 0.9 (Nesterov)" in text
    assert rows["model.zero_init_residual"] == "True"


def test_every_field_that_is_not_as_default_is_shown():
    config = config_io.load(
        f"{REPOSITORY}/configs/resnet.py",
        [("augment.mixup", "0.2"), ("data.repeated_aug", "3"), ("loss.label_smoothing", "0.1"),
         ("data.threads", "7"), ("ema.decay", "0.5")],
    )  # fmt: skip
    rows = dict(describe_recipe(config, images=10, steps=20))
    assert rows["augment.mixup"] == "0.2" and rows["data.repeated_aug"] == "3"
    assert rows["loss.label_smoothing"] == "0.1" and rows["ema.decay"] == "0.5"
    assert "data.threads" not in rows  # how it is carried out, not what is computed


def test_the_picture_shows_warm_up_peak_and_end():
    config = config_io.load(
        f"{REPOSITORY}/configs/resnet.py",
        [("optim.schedule", "cosine"), ("optim.warmup_epochs", "30")],
    )
    schedule = schedules.make_schedule(
        config.optim, batch_size=256, steps_per_epoch=10, total_steps=900
    )
    lines = dry_run.draw_schedule(schedule, 900, 90.0)
    columns = [line.split("|")[1] for line in lines[:-1]]
    heights = [sum(" ▁▂▃▄▅▆▇█".index(c) for c in column) for column in zip(*columns, strict=True)]
    assert heights[0] == 0 and heights[-1] == 0
    assert heights.index(max(heights)) in (19, 20, 21)  # a third of 60
    assert heights[40] == pytest.approx(max(heights) / 2, abs=2)  # half way down the cosine
    assert lines[0].strip().startswith("0.1") and "epoch 90" in lines[-1]


def test_quickstart_from_recipe_to_time(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quick.model.width = 1.0
    dry_run.dry_run(quick)
    out = capsys.readouterr().out
    assert "memory of each device: " in out and "img/s on 8 x cpu" in out
    # Every quantity is in a unit that fits it.
    assert re.search(
        r"operations: [1-9]\d*(\.\d+)? MFLOP an image, [1-9]\d*(\.\d+)? GFLOP in all", out
    )
    assert re.search(r"about \d+\.\d (s|min) for all steps", out)
    run = make_experiment(quick)
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(run.abstract))
    shown = float(re.search(r"device: ([\d.]+) MiB of state", out)[1]) * 2**20
    batch = quick.batch_size / 8 * (16 * 16 * 3 + 4)
    assert shown == pytest.approx(state + batch, rel=0.1, abs=0.06 * 2**20)
    assert list(tmp_path.iterdir()) == []


def test_the_workdir_is_needed_only_to_train():
    with pytest.raises(UserError, match="give --workdir=DIR.* only --dry_run needs none"):
        command.main([f"--config={REPOSITORY}/configs/quickstart.py"])
