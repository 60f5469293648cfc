"""A torchvision state dict and a folder of photographs: our eval and predict against torch's."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from PIL import Image  # noqa: E402
from sklearn.datasets import load_sample_images  # noqa: E402

from imagenet_jax import convert  # noqa: E402
from imagenet_jax.classify.evaluate_weights import evaluate_file  # noqa: E402
from imagenet_jax.classify.images import predict_images  # noqa: E402
from imagenet_jax.config import check  # noqa: E402
from imagenet_jax.config.fields import IMAGENET_MEAN, IMAGENET_STD, defaults  # noqa: E402
from imagenet_jax.data.classes import imagenet_names  # noqa: E402
from imagenet_jax.data.image_files import find_images  # noqa: E402
from imagenet_jax.training.load_weights import load_weights_file  # noqa: E402

pytestmark = pytest.mark.parity

CLASSES = ("ant", "bee", "cat", "cow", "dog", "eel")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Crops of two photographs, of many sizes, in one folder a class."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("images")
    photographs = load_sample_images().images
    for name in CLASSES:
        directory = root / "val" / name
        directory.mkdir(parents=True)
        for i in range(3):
            top, left = rng.integers(0, 150), rng.integers(0, 300)
            height, width = rng.integers(90, 270, 2)
            crop = photographs[i % 2][top : top + height, left : left + width]
            Image.fromarray(crop).save(directory / f"{i}.jpg", quality=90)
    return root


def test_eval_and_predict_of_an_imported_model(folder, tmp_path, parity_table):
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=len(CLASSES)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(model.state_dict(), tmp_path / "w.pth")

    from torchvision import transforms

    data = torchvision.datasets.ImageFolder(
        folder / "val",
        transforms.Compose(
            [
                transforms.Resize(128),
                transforms.CenterCrop(112),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        ),
    )
    labels = torch.tensor(data.targets)
    with torch.no_grad():
        logits = model(torch.stack([image for image, _ in data]))
    probabilities = logits.softmax(dim=1).numpy()

    config = defaults("resnet18")
    config.model.num_classes = len(CLASSES)
    config.data.path = str(folder)
    config.eval.resize, config.eval.image_size, config.eval.batch_size = 128, 112, 16
    check(config)
    convert.main([f"--from={tmp_path}/w.pth", f"--to={tmp_path}/w.safetensors"])
    for name in ("w.pth", "w.safetensors"):
        result = evaluate_file(tmp_path / name, config)
        loss = torch.nn.functional.cross_entropy(logits, labels).item()
        assert result["count"] == len(data)
        assert result["loss"] == pytest.approx(loss, rel=1e-3)  # a pixel in 100 rounds otherwise
        assert result["top1"] == (logits.argmax(dim=1) == labels).double().mean().item()
        ranks = logits.topk(5, dim=1).indices == labels[:, None]
        assert result["top5"] == pytest.approx(ranks.any(dim=1).double().mean().item())

    images, problems = find_images([str(folder)])
    assert not problems
    assert [image.name for image in images] == [path for path, _ in data.samples]
    weights = load_weights_file(tmp_path / "w.safetensors", config)
    assert weights.class_names == CLASSES
    worst = 0.0
    for row, prediction in zip(
        probabilities, predict_images(weights, images, len(CLASSES)), strict=True
    ):
        error = np.abs(prediction.probabilities / row[prediction.labels] - 1).max()
        worst = max(worst, float(error))
        assert list(prediction.classes) == [CLASSES[i] for i in prediction.labels]
    assert worst < 0.02
    parity_table("training", "probabilities of images from files", "resnet18", worst)


def test_class_names_are_torchvisions():
    from torchvision.models import _meta

    assert list(imagenet_names()) == _meta._IMAGENET_CATEGORIES
