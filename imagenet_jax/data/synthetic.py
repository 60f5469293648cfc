"""Synthetic images, for benchmarks of the input pipeline."""

import io

import numpy as np
from PIL import Image

from imagenet_jax.data.records import Record
from imagenet_jax.files import hash_texts


class SyntheticSource:
    """JPEGs of smooth random colors, for benchmarks: a few distinct images that repeat."""

    _DISTINCT = 16

    def __init__(self, split: str, images: int, classes: int, height: int, width: int):
        self.name = f"synthetic {split}"
        self.class_names = tuple(f"class {i}" for i in range(classes))
        self.fingerprint = hash_texts(split, *map(str, (images, classes, height, width)))
        self._length = images
        rng = np.random.default_rng(0)
        self._encoded = [self._draw(rng, height, width) for _ in range(self._DISTINCT)]

    @staticmethod
    def _draw(rng: np.random.Generator, height: int, width: int) -> bytes:
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noise = rng.normal(0, 6, (height, width, 3))  # about as much detail as a photograph
        pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        return file.getvalue()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        return {
            "image": self._encoded[index % self._DISTINCT],
            "label": index % len(self.class_names),
            "id": f"{self.name} {index}",
        }

    def labels(self) -> np.ndarray:
        return np.arange(self._length, dtype=np.int32) % len(self.class_names)
