"""Write what torch computes, for tests that run without it.

  python tests/goldens/make.py        (needs torch and torchvision)

For each model a .npz beside this file: torchvision's logits in evaluation, and in training mode the
loss of a fixed batch and the norm of the gradient of every parameter. Weights and images come from
a formula, so that only results are stored. They are computed in float64.
"""

import sys
from pathlib import Path

import numpy as np

# name -> (image side, width); a narrow VGG is torchvision's layers with fewer channels
MODELS = {"resnet18": (64, 1.0), "resnet50": (64, 1.0), "vgg11_bn": (32, 0.125)}
CLASSES, IMAGES = 10, 4
LABELS = np.array([3, 1, 4, 1])


def noise(count: int, seed: float) -> np.ndarray:
    """f64[count], uniform in [-1, 1): the digits of a sine that its double keeps but none sees."""
    digits = np.sin(np.arange(count) * 12.9898 + seed) * 43758.5453
    return 2 * (digits - np.floor(digits)) - 1


def images(side: int) -> np.ndarray:
    """f64[4, side, side, 3] of unit variance."""
    return noise(IMAGES * side * side * 3, 0.5).reshape(IMAGES, side, side, 3) * 3**0.5


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """f64[shape], the value of torchvision's parameter or statistic `key`.

    Noise with a seed of its own for each key; kernels have He's gain, scales and variances are
    near 1, but the scales that end the branches of a ResNet are small, as in a trained one:
    else every block would magnify rounding errors.
    """
    values = noise(int(np.prod(shape)), float(sum(map(ord, key)))).reshape(shape)
    if len(shape) > 1:
        return values * (6 / np.prod(shape[1:])) ** 0.5
    if key.endswith(("bn2.weight", "bn3.weight")):
        return 0.3 + 0.1 * values
    if key.endswith(("running_var", "weight")):  # of one axis: a scale
        return 1 + 0.2 * values
    return 0.1 * values


def reference(name: str, width: float):
    import torch
    import torchvision

    if name.startswith("resnet"):
        return getattr(torchvision.models, name)(num_classes=CLASSES).double()
    channels = [c if c == "M" else int(c * width) for c in torchvision.models.vgg.cfgs["A"]]
    layers = torchvision.models.vgg.make_layers(channels, batch_norm=name.endswith("_bn"))
    model = torchvision.models.VGG(layers, num_classes=CLASSES, dropout=0.0)
    hidden = int(4096 * width)
    model.classifier[0] = torch.nn.Linear(channels[-2] * 49, hidden)
    model.classifier[3] = torch.nn.Linear(hidden, hidden)
    model.classifier[6] = torch.nn.Linear(hidden, CLASSES)
    return model.double()


def result(name: str, side: int, width: float) -> dict[str, np.ndarray]:
    import torch

    model = reference(name, width)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if not key.endswith("num_batches_tracked"):
                value.copy_(torch.from_numpy(weight(key, tuple(value.shape))))
    x = torch.from_numpy(images(side).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        logits = model.eval()(x).numpy()
    loss = torch.nn.functional.cross_entropy(model.train()(x), torch.from_numpy(LABELS))
    loss.backward()
    norms = {f"grad/{k}": p.grad.norm().numpy() for k, p in model.named_parameters()}
    return {"logits": logits, "loss": loss.detach().numpy(), **norms}


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
    import conftest  # noqa: F401  declares what torchvision's import needs

    for name, (side, width) in MODELS.items():
        path = Path(__file__).with_name(f"{name}.npz")
        np.savez_compressed(path, **result(name, side, width))
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
