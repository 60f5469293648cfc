"""Undecodable images: the step masks their rows, the run names and counts them."""

import json
import os
import signal

import jax
import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image

from imagenet_jax import eval as eval_command
from imagenet_jax import train as loop
from imagenet_jax.errors import UserError
from imagenet_jax.training.experiment import make_step_parts
from imagenet_jax.training.sharding import make_mesh
from imagenet_jax.training.state import abstract_state, create_state
from imagenet_jax.training.step import compile_train_step


def _after_a_step(config, batch):
    mesh = make_mesh(1, jax.devices()[:1])
    parts = make_step_parts(config, steps_per_epoch=10)
    abstract = abstract_state(config.model, parts.tx, False, mesh)
    state = create_state(config.model, parts.tx, False, mesh, config.seed)
    step = compile_train_step(parts, abstract, mesh)
    state, metrics = step(state, batch)
    return jax.device_get(state.params), jax.device_get(metrics)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_masked_rows_do_not_affect_the_step(accumulate):
    """Without batch norm and dropout, 8 rows with 2 masked give the step of the other 6."""
    config = tiny_config("", "small_cnn")
    config.augment.flip, config.ema.decay = False, 0.0
    config.loss.label_smoothing = 0.1
    config.optim.grad_accum_steps = accumulate
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, 8).astype(np.int32)
    mask = np.array([1, 1, 0, 1, 1, 1, 0, 1], np.float32)
    masked, m = _after_a_step(config, {"image": images, "label": labels, "mask": mask})
    config.optim.grad_accum_steps = 1
    kept = mask > 0
    fewer, f = _after_a_step(config, {"image": images[kept], "label": labels[kept]})
    np.testing.assert_allclose(m["loss"], f["loss"], rtol=1e-6)
    np.testing.assert_allclose(m["top1"], f["top1"], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), masked, fewer)
    none, n = _after_a_step(
        config, {"image": images, "label": labels, "mask": np.zeros(8, np.float32)}
    )
    assert n["loss"] == 0 and np.isfinite(n["grad_norm"])


@pytest.fixture
def damaged(tmp_path):
    """A folder with 24 + 16 images in two classes; one of each split is truncated."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 16)):
        for label in range(2):
            (tmp_path / "data" / split / str(label)).mkdir(parents=True)
            for i in range(count // 2):
                file = tmp_path / "data" / split / str(label) / f"{i}.png"
                pixels = rng.integers(0, 128, (16, 16, 3), dtype=np.uint8) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(file)
    for name in ("train/0/5.png", "val/1/3.png"):
        file = tmp_path / "data" / name
        file.write_bytes(file.read_bytes()[:60])
    config = tiny_config(tmp_path / "data", "small_cnn")
    config.data.source = "folder"
    config.data.undecodable = "skip"
    config.model.num_classes, config.batch_size, config.epochs = 2, 8, 3.0
    config.eval.batch_size, config.log.every_steps = 8, 2
    return config


def _lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_run_names_and_counts_skipped_images(damaged, tmp_path, capsys):
    assert loop.train(damaged, tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "3 undecodable images skipped, named in metrics.jsonl" in out  # once in each of 3 epochs
    lines = _lines(tmp_path / "run")
    train = [name for line in lines if line["split"] == "train" for name in line.get("skipped", [])]
    assert train == ["train/0/5.png"] * 3
    last = [line for line in lines if line["split"] == "validation"][-1]
    assert (last["count"], last["skipped"]) == (15, ["val/1/3.png"])
    assert eval_command.main([f"--workdir={tmp_path / 'run'}"]) == 0
    assert "undecodable and not counted: val/1/3.png" in capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "eval" / "9.json").read_text())
    assert (result["count"], result["skipped"]) == (15, ["val/1/3.png"])


@pytest.mark.full
def test_count_of_skipped_images_survives_a_stop(damaged, tmp_path, capsys, monkeypatch):
    loop.train(damaged, tmp_path / "whole")
    whole = _lines(tmp_path / "whole")
    real = loop.prefetch_to_device

    def stopped_at_four(*args):
        for step, batch in enumerate(real(*args), 1):
            if step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(loop, "prefetch_to_device", stopped_at_four)
    assert loop.train(damaged, tmp_path / "run") == 128 + 15
    monkeypatch.undo()
    capsys.readouterr()
    assert loop.train(damaged, tmp_path / "run") == 0
    assert "3 undecodable images skipped" in capsys.readouterr().out
    skipped = [[x.get("skipped") for x in lines] for lines in (whole, _lines(tmp_path / "run"))]
    assert skipped[0] == skipped[1]


def test_undecodable_images_stop_training_by_default(damaged, tmp_path):
    damaged.data.undecodable = "stop"
    with pytest.raises(UserError, match=r"train/0/5\.png cannot be decoded.*undecodable=skip"):
        loop.train(damaged, tmp_path / "run")
