"""scikit-learn's 1,797 scanned digits as a data set in the format that ImageNet uses.

They are the test set of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998),
8x8 pixels of 17 grey levels, and ship inside scikit-learn's wheel.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from imagenet_jax.data.tfds_format import Record, write_dataset

NAME = "digits"
CLASS_NAMES = tuple(str(digit) for digit in range(10))


def splits() -> dict[str, list[Record]]:
    """1,437 and 360 greyscale PNGs: sorted by class, every fifth is for validation."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    by_class = np.argsort(digits.target, kind="stable")
    out: dict[str, list[Record]] = {"train": [], "validation": []}
    for place, i in enumerate(by_class):
        grey = np.rint(digits.images[i] * (255 / 16)).astype(np.uint8)
        out["train" if place % 5 else "validation"].append(
            {"image": _png(grey), "label": int(digits.target[i]), "id": f"digit_{i:04}.png"}
        )
    return out


def _png(grey: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    return file.getvalue()


def prepare(path: Path) -> None:
    """Write them to `path`, unless they are there."""
    if path.exists():
        return
    write_dataset(
        path,
        name=NAME,
        version="1.0.0",
        splits=dict(splits()),
        class_names=CLASS_NAMES,
        description="scikit-learn's digits; sorted by class, every fifth is for validation.",
        encoding="png",
    )
