"""Built-in data: scikit-learn's digits, for the quickstart, and synthetic JPEGs, for benchmarks."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from imagenet_jax.data import Record
from imagenet_jax.data.tfds_format import write_dataset
from imagenet_jax.files import hash_texts


def make_digits() -> dict[str, list[Record]]:
    """Return scikit-learn's digits: 1,437 grayscale PNGs for training and 360 for validation.

    They are the test set of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak
    1998): 8x8 pixels of 17 gray levels. They are sorted by class; every fifth is for validation.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    splits: dict[str, list[Record]] = {"train": [], "validation": []}
    for place, i in enumerate(np.argsort(digits.target, kind="stable")):
        gray = np.rint(digits.images[i] * (255 / 16)).astype(np.uint8)
        splits["train" if place % 5 else "validation"].append(
            {"image": _encode(gray, "PNG"), "label": int(digits.target[i]),
             "id": f"digit_{i:04}.png"}
        )  # fmt: skip
    return splits


def write_digits(path: Path) -> None:
    """Write the digits as a tfds directory `path`, such as digits/1.0.0, unless it exists."""
    if not path.exists():
        about = "scikit-learn's digits; sorted by class, every fifth is for validation."
        write_dataset(path, dict(make_digits()), tuple("0123456789"), about, encoding="png")


class SyntheticSource:
    """JPEGs of smooth random colors: 16 distinct images that repeat."""

    def __init__(self, split: str, images: int, classes: int, height: int, width: int):
        self.name = f"synthetic {split}"
        self.class_names = tuple(f"class {i}" for i in range(classes))
        self.fingerprint = hash_texts(split, *map(str, (images, classes, height, width)))
        self._length = images
        rng = np.random.default_rng(0)
        self._encoded = [_draw_photograph(rng, height, width) for _ in range(16)]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        return {
            "image": self._encoded[index % len(self._encoded)],
            "label": index % len(self.class_names),
            "id": f"{self.name} {index}",
        }

    def labels(self) -> np.ndarray:
        return np.arange(self._length, dtype=np.int32) % len(self.class_names)


def _draw_photograph(rng: np.random.Generator, height: int, width: int) -> bytes:
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 6, (height, width, 3))  # about as much detail as a photograph
    return _encode(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8), "JPEG", quality=90)


def _encode(pixels: np.ndarray, image_format: str, **options: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format, **options)
    return file.getvalue()
