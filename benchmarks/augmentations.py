"""Draw every augmentation of a photograph, as one PNG.

The photographs are scikit-learn's two sample images. Each picture is made by the function that
training uses, with the magnitude in its title. For example:

  python -m benchmarks.augmentations --out=docs/augmentations.png
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from imagenet_jax import cli
from imagenet_jax.config.fields import IMAGENET_MEAN, IMAGENET_STD
from imagenet_jax.data import augment
from imagenet_jax.data.augment import (
    autoaugment,
    erasing,
    mixing,
    operations,
    randaugment_plain,
    three_augment,
)
from imagenet_jax.data.augment import randaugment as policies

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

_COLUMNS = 7
_SIDE = 224
_BIN = 20  # magnitude of the operations, 0 to 30
_BLACK = (0.0, 0.0, 0.0)


def photographs(side: int = _SIDE) -> np.ndarray:
    """Return the center squares of scikit-learn's temple and flower: u8[2, side, side, 3]."""
    squares = []
    for photo in load_sample_images().images:
        image = Image.fromarray(photo)
        left, top = (image.width - image.height) // 2, 0
        box = (left, top, left + image.height, image.height)
        squares.append(np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=box)))
    return np.stack(squares)


def _policy_operations(images: np.ndarray) -> dict[str, np.ndarray]:
    """Return pictures of the fourteen operations of TrivialAugment (wide), with one magnitude."""
    table = policies.magnitudes("trivialaugment", *images.shape[1:3])
    pictures = {}
    for index, name in enumerate(policies.OPERATIONS):
        magnitude = jnp.full(len(images), table[index, _BIN])
        out = policies.apply(
            jnp.asarray(images), jnp.full(len(images), index), magnitude, "bilinear", _BLACK
        )
        number = f" {table[index, _BIN]:.2g}" if table[index].any() else ""
        pictures[name.replace("_", " ") + number] = np.asarray(out)[0]
    return pictures


def _other_operations(images: np.ndarray) -> dict[str, np.ndarray]:
    """Return pictures of operations outside the policies, of mixing, and of whole policies."""
    key = jax.random.key(1)
    x = jnp.asarray(images)
    pixels = augment.normalize(x, IMAGENET_MEAN, IMAGENET_STD)

    def shown(normalized: jax.Array) -> np.ndarray:
        rgb = np.asarray(normalized) * np.array(IMAGENET_STD) + np.array(IMAGENET_MEAN)
        return np.round(np.clip(rgb, 0, 1) * 255).astype(np.uint8)

    def mixed(weight: jax.Array) -> np.ndarray:
        targets = jnp.eye(len(images))
        return shown(mixing.blend(pixels, targets, weight, weight.mean())[0])

    lam = jnp.float32(0.6)
    height, width = images.shape[1:3]
    draws: dict[str, Callable[[], np.ndarray]] = {
        "flip": lambda: images[:, :, ::-1],
        "invert": lambda: np.asarray(operations.invert(x)),
        "hue +0.3": lambda: np.asarray(operations.hue(x, jnp.full(len(images), 0.3))),
        "Gaussian blur, radius 2": lambda: np.asarray(
            three_augment.gaussian_blur(x, jnp.full(len(images), 2.0))
        ),
        "color jitter 0.4, hue 0.1": lambda: np.asarray(
            operations.jitter(x, key, (0.4, 0.4, 0.4, 0.1))
        ),
        "lighting 1.0 (10 times AlexNet's)": lambda: shown(
            operations.lighting(pixels, key, 1.0, IMAGENET_STD)
        ),
        "random erasing, zero": lambda: shown(erasing.random_erasing(pixels, key, 1.0)),
        "random erasing, noise": lambda: shown(erasing.random_erasing(pixels, key, 1.0, "noise")),
        "mixup, λ = 0.6": lambda: mixed(jnp.full((height, width), lam)),
        "cutmix, λ = 0.6": lambda: mixed(mixing.cutmix_weight(lam, key, height, width)),
        "rotate, nearest": lambda: np.asarray(
            operations.affine(x, operations.rotate(jnp.full(len(images), 20.0)), "nearest")
        ),
    }
    pictures = {name: draw()[0] for name, draw in draws.items()}
    crowd = jnp.broadcast_to(x[:1], (2, *x.shape[1:]))
    for title, policy in (
        ("RandAugment 2, 9", policies.randaugment),
        ("big_vision's 2, 10", randaugment_plain.randaugment_plain),
        ("TrivialAugment wide", policies.trivialaugment),
        ("AutoAugment", autoaugment.autoaugment),
        ("3-Augment", three_augment.three_augment),
    ):
        for i, out in enumerate(np.asarray(policy(crowd, jax.random.key(29)))):
            pictures[f"{title}, draw {i + 1}"] = out
    return pictures


def plot(out: Path) -> None:
    """Write the picture as a PNG."""
    images = photographs()
    pictures = {"photograph": images[0]} | _policy_operations(images) | _other_operations(images)
    pictures.pop("identity")
    rows = -(-len(pictures) // _COLUMNS)
    figure, axes = plt.subplots(
        rows, _COLUMNS, figsize=(2 * _COLUMNS, 2.2 * rows), layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, picture) in zip(axes.flat, pictures.items(), strict=False):
        axis.imshow(picture)
        axis.set_title(title, fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=64)
    plt.close(figure)


def main(argv: Sequence[str]) -> int:
    parser = cli.parser("benchmarks.augmentations", __doc__)
    parser.add_argument("--out", required=True, metavar="FILE", help="the picture to write")
    args = parser.parse_args(argv)
    plot(Path(args.out))
    print(args.out)
    return 0


if __name__ == "__main__":
    cli.run(main)
