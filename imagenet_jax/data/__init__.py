"""Data loading, from encoded images to batches of uint8 pixels. Defines records and sources."""

from collections.abc import Sequence
from typing import Protocol, TypedDict

import numpy as np

from imagenet_jax.files import hash_texts


class Record(TypedDict):
    """An encoded image, its label, and its name for messages."""

    image: bytes
    label: int
    id: str


class Source(Protocol):
    """The records of a split. Picklable, and safe to read from several threads.

    Attributes:
      name: for messages.
      class_names: label -> name.
      fingerprint: changes if the records or their order change.
    """

    name: str
    class_names: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def labels(self) -> np.ndarray:
        """Return the label of every record: i32[N]."""
        ...


class Subset:
    """The records of a source at the given indices."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray):
        self._source, self._indices = source, np.asarray(indices, np.int64)
        self.name = f"{source.name} ({len(self._indices)} of {len(source)} records)"
        self.class_names = source.class_names
        self.class_numbers = getattr(source, "class_numbers", ())
        self.fingerprint = hash_texts(source.fingerprint, self._indices.tobytes().hex())

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        return self._source[int(self._indices[index])]

    def labels(self) -> np.ndarray:
        return self._source.labels()[self._indices]
