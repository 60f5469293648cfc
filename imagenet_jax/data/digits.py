"""scikit-learn's 1,797 scanned digits, in the format that ImageNet is read from.

They are the test set of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998):
8x8 pixels of 17 gray levels, part of scikit-learn's wheel.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from imagenet_jax.data.records import Record
from imagenet_jax.data.tfds_format import write_dataset

NAME = "digits"
CLASS_NAMES = tuple(str(digit) for digit in range(10))


def splits() -> dict[str, list[Record]]:
    """Return 1,437 grayscale PNGs for training and 360 for validation.

    Digits are sorted by class; every fifth is for validation.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    by_class = np.argsort(digits.target, kind="stable")
    out: dict[str, list[Record]] = {"train": [], "validation": []}
    for place, i in enumerate(by_class):
        file = io.BytesIO()
        gray = np.rint(digits.images[i] * (255 / 16)).astype(np.uint8)
        Image.fromarray(gray).save(file, "PNG")
        out["train" if place % 5 else "validation"].append(
            {"image": file.getvalue(), "label": int(digits.target[i]), "id": f"digit_{i:04}.png"}
        )
    return out


def prepare(path: Path) -> None:
    """Write the digits to `path`, such as digits/1.0.0, unless it exists."""
    if path.exists():
        return
    write_dataset(
        path,
        dict(splits()),
        CLASS_NAMES,
        description="scikit-learn's digits; sorted by class, every fifth is for validation.",
        encoding="png",
    )
