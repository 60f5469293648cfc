"""The flags of `python -m imagenet_jax.sweep`; test_run.py has sweeps that train."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY

from imagenet_jax.sweep import __main__ as sweep

CONFIG = "--config=configs/quickstart.py"


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def test_dry_run_prints_the_training_commands(tmp_path, call_command):
    out = tmp_path / "a b"
    code, printed, _ = call_command(
        sweep,
        [CONFIG, "--grid=augment.crop_scale=(0.5,1),(1,1) ema.decay=0,0.5", "--seeds=2",
         "--config.epochs=2", f"--out={out}", "--dry_run"],
    )  # fmt: skip
    assert code == 0
    lines = printed.splitlines()
    assert len(lines) == 8
    assert not out.exists()
    # A shell splits the line into the exact arguments of main.
    arguments = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {lines[-1]}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert arguments == [
        sys.executable, "-m", "imagenet_jax.main", CONFIG,
        f"--workdir={out}/crop_scale=1_1,decay=0.5,seed=1", "--config.epochs=2",
        "--config.augment.crop_scale=(1,1)", "--config.ema.decay=0.5", "--config.seed=1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--grid=ema.decay=0,1"], ["--config"]),
        ([CONFIG, "--grid=ema.decya=0,1"], ["ema.decya", "ema.decay"]),
        ([CONFIG, "--grid=ema.decay=0,2"], ["ema.decay", "2"]),
        ([CONFIG, "--sweep=sweeps/none.py"], ["sweeps/none.py", "does not exist"]),
        ([CONFIG, "--sweep=sweeps/quickstart_ablation.py", "--grid=a=1"], ["--sweep", "--grid"]),
        ([CONFIG, "--config.seed=3"], ["--seeds"]),
        ([CONFIG, "--seeds=0"], ["seeds"]),
        ([CONFIG, "--metric=top5"], ["--metric", "without --table"]),
        (["--table"], ["no sweep.json"]),
        (["--table", "--seeds=3"], ["--seeds", "with --table"]),
        (["--table", "--config.epochs=3"], ["--config.epochs", "with --table"]),
    ],
)
def test_invalid_flags_are_refused_before_anything_starts(tmp_path, fails, args, words):
    out = tmp_path / "sweep"
    fails(sweep, [*args, f"--out={out}"], *words)
    assert not out.exists()
