"""Transfer: a network that knows the digits 0 to 4 learns 5 to 9, unequally many of each."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from imagenet_jax import config as config_io
from imagenet_jax import convert
from imagenet_jax import eval as eval_command
from imagenet_jax import main as main_command
from imagenet_jax import train as loop

NAMES = {5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine"}
COUNTS = {5: 60, 6: 45, 7: 30, 8: 20, 9: 10}
SMALL = [
    "model.stem=small", "model.width=0.125", "model.dtype=float32", "data.threads=2",
    "augment.image_size=32", "eval.image_size=32", "eval.resize=32", "log.tensorboard=false",
]  # fmt: skip


def _write(root, digits, counts):
    data = load_digits()
    for digit in digits:
        images = data.images[data.target == digit][: counts[digit]]
        (root / NAMES.get(digit, str(digit))).mkdir(parents=True)
        for i, image in enumerate(images):
            pixels = Image.fromarray((image * 255 / 16).astype(np.uint8))
            pixels.save(root / NAMES.get(digit, str(digit)) / f"{i:03}.png")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A weights file of a network for the digits 0 to 4."""
    root = tmp_path_factory.mktemp("pretrained")
    _write(root / "data", range(5), dict.fromkeys(range(5), 150))
    config = config_io.load(
        "configs/transfer.py:resnet18",
        [tuple(x.split("=")) for x in SMALL]
        + [("init.weights", ""), ("init.new_head", "false"), ("data.path", str(root / "data")),
           ("model.num_classes", "5"), ("epochs", "6"),
           ("optim.freeze_epochs", "0"), ("optim.base_lr", "0.3"), ("augment.flip", "false"),
           ("optim.layer_decay", "1"), ("checkpoint.every_epochs", "0")],
    )  # fmt: skip
    assert loop.train(config, root / "run") == 0
    convert.main([f"--from={root}/run", f"--to={root}/weights.safetensors"])
    return root / "weights.safetensors"


@pytest.mark.slow
def test_from_a_folder_to_a_report_by_class(pretrained, tmp_path, capsys):
    _write(tmp_path / "data", range(5, 10), COUNTS)
    run = tmp_path / "run"
    args = [
        "--config=configs/transfer.py:resnet18", f"--workdir={run}", f"--weights={pretrained}",
        f"--config.data.path={tmp_path / 'data'}", "--config.epochs=16",
        "--config.optim.base_lr=0.3", "--config.augment.flip=false",
        "--config.batch_size=32", "--config.eval.every_epochs=2",
        *(f"--config.{x}" for x in ["model.num_classes=5", *SMALL]),
    ]  # fmt: skip
    assert main_command.main(args) == 0
    capsys.readouterr()
    assert eval_command.main([f"--workdir={run}", "--by_class"]) == 0
    out = capsys.readouterr().out
    assert "by class, lowest F1 first" in out and "expected calibration error" in out
    (file,) = (run / "eval").glob("*_by_class.json")
    report = json.loads(file.read_text())
    images = {c["name"]: c["images"] for c in report["classes"]}
    assert images == {NAMES[d]: round(0.2 * n) for d, n in COUNTS.items()}  # a fifth of each
    with Image.open(next((run / "eval").glob("*_confusion.png"))) as picture:
        assert picture.width > 300
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    head_only = [h["top1"] for h in history if h["split"] == "validation"][0]
    assert report["accuracy"] >= 0.85
    assert report["accuracy"] > head_only  # all layers learn more than the head alone
