"""Every mistake a user can make: one line on stderr, exit code 1, no traceback, nothing written."""

import io

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image

from imagenet_jax import cli
from imagenet_jax import eval as eval_command
from imagenet_jax import main as main_command


@pytest.fixture
def folder(tmp_path):
    """A folder of a few JPEGs for each of three classes, in two splits."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for name in ("ant", "bee", "cat"):
            directory = tmp_path / "images" / split / name
            directory.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(directory / f"{i}.JPEG")
    return tmp_path / "images"


def _args(tmp_path, path, *more):
    return [
        f"--config={REPOSITORY}/configs/resnet.py",
        f"--workdir={tmp_path}/run",
        f"--config.data.path={path}",
        "--config.model.num_classes=3",
        "--config.model.width=0.0625",
        "--config.model.dtype=float32",
        "--config.augment.image_size=32",
        "--config.eval.image_size=32",
        "--config.eval.resize=36",
        "--config.batch_size=8",
        "--config.eval.batch_size=8",
        "--config.log.tensorboard=false",
        *more,
    ]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "--config.optim.bass_lr=1",
            ["config.optim.bass_lr", "did you mean config.optim.base_lr?"],
        ),
        ("--config.batch_size=big", ["config.batch_size = 'big'", "an integer"]),
        ("--config.batch_size=12", ["config.batch_size = 12", "8 devices", "batch_size=8 or"]),
        ("--config.eval.batch_size=12", ["config.eval.batch_size = 12", "8 devices"]),
        (
            "--config.optim.grad_accum_steps=2",
            ["grad_accum_steps = 2 times the 8 devices", "batch_size=16"],
        ),
        ("--config.mesh.fsdp=3", ["config.mesh.fsdp = 3", "8 devices"]),
        ("--config.model.num_classes=4", ["num_classes = 4", "has 3 classes", "num_classes=3"]),
        ("--config.data.train_split=trian", ["no trian split", "train, validation"]),
        ("--config.data.source=tfds", ["not a tfds directory", "dataset_info.json"]),
        ("--config.model.width=0.001", ["config.model.width = 0.001"]),
        ("--config.data.remainder=drop", None),
    ],
)
def test_bad_values(folder, tmp_path, fails, override, words):
    if words is None:  # 18 images: two steps of 8 fit, none of 32
        override, words = "--config.batch_size=32", ["batch_size = 32", "no step"]
        args = _args(tmp_path, folder, override, "--config.data.remainder=drop")
    else:
        args = _args(tmp_path, folder, override)
    fails(main_command, args, *words)
    assert not (tmp_path / "run").exists()


def test_missing_data_says_what_was_looked_for_and_how_to_make_it(tmp_path, fails):
    args = _args(tmp_path, tmp_path / "nowhere")
    words = f"{tmp_path}/nowhere", "dataset_info.json", "train/CLASS", "docs/data.md"
    fails(main_command, args, *words)
    assert not (tmp_path / "run").exists()


def test_splits_with_different_classes(folder, tmp_path, fails):
    (folder / "val" / "cat").rename(folder / "val" / "cow")
    fails(main_command, _args(tmp_path, folder), "'train'", "'validation'", "different classes")


def test_class_folder_without_images(folder, tmp_path, fails):
    for file in (folder / "train" / "bee").iterdir():
        file.unlink()
    fails(main_command, _args(tmp_path, folder), f"{folder}/train/bee", "no images")


def _truncate(file):
    file.write_bytes(file.read_bytes()[:200])


def _empty(file):
    file.write_bytes(b"")


def _text(file):
    file.write_text("not an image")


@pytest.mark.parametrize("damage", [_truncate, _empty, _text])
def test_undecodable_image_is_named(folder, tmp_path, fails, damage):
    damage(folder / "train" / "bee" / "3.JPEG")
    args = _args(tmp_path, folder, "--config.epochs=2")
    fails(main_command, args, "train/bee/3.JPEG", "cannot be decoded")


def test_image_that_vanishes_is_named(folder, tmp_path, fails, monkeypatch):
    from imagenet_jax.training import run_context

    real = run_context.create_state

    def remove_then_create(*args):
        (folder / "train" / "ant" / "0.JPEG").unlink()
        return real(*args)

    monkeypatch.setattr(run_context, "create_state", remove_then_create)
    fails(
        main_command,
        _args(tmp_path, folder, "--config.epochs=2"),
        "train/ant/0.JPEG",
        "cannot be read",
    )


def test_workdir_that_cannot_be_written(folder, tmp_path, fails):
    (tmp_path / "run").write_text("a file")
    fails(main_command, _args(tmp_path, folder), f"--workdir={tmp_path}/run")


def test_missing_config_file(tmp_path, fails):
    fails(main_command, ["--config=configs/nope.py", f"--workdir={tmp_path}"], "configs/nope.py")


def test_override_without_a_value(tmp_path, fails):
    fails(
        main_command,
        ["--config=x.py", f"--workdir={tmp_path}", "--config.seed"],
        "--config.seed=VALUE",
    )


def test_unknown_flag_names_itself(call_command):
    code, _, err = call_command(main_command, ["--confg=x.py", "--workdir=x", "--config=x"])
    assert code != 0
    assert "unrecognized argument --confg; did you mean --config?" in err


def test_eval_of_a_folder_that_is_no_workdir(tmp_path, fails):
    fails(eval_command, [f"--workdir={tmp_path}"], "no config.json", str(tmp_path))


@pytest.mark.full
def test_eval_of_a_missing_checkpoint(folder, tmp_path, fails, call_command):
    args = _args(tmp_path, folder, "--config.epochs=1", "--config.eval.every_epochs=0")
    code, _, err = call_command(main_command, args)
    assert code == 0, err
    run = tmp_path / "run"
    fails(eval_command, [f"--workdir={run}", "--checkpoint=99"], "--checkpoint=99", "has 3")
    fails(eval_command, [f"--workdir={run}", "--checkpoint=newest"], "'latest' and 'best'")
    for step in (run / "checkpoints").iterdir():
        step.rename(tmp_path / step.name)
    fails(eval_command, [f"--workdir={run}"], "no checkpoint in")
    (run / "config.json").write_text("{")
    fails(eval_command, [f"--workdir={run}"], "config.json is not valid JSON")


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "--config=nope.py", "--workdir=x", "--debug"])
    with pytest.raises(Exception, match=r"nope\.py"):
        cli.run(main_command.main)


def test_defects_keep_their_traceback(monkeypatch):
    def broken(argv):
        return io.BytesIO(None).missing

    monkeypatch.setattr("sys.argv", ["x"])
    with pytest.raises(AttributeError):
        cli.run(broken)
