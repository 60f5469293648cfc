"""What a kind of input has to say of itself to be prepared."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from imagenet_jax.data.pool import Pool
from imagenet_jax.prepare.images import Storage
from imagenet_jax.prepare.index import Index


@dataclass(frozen=True)
class Dataset:
    """A data set before it is prepared.

    Attributes:
      name: of the tfds data set, without what resizing adds.
      version: of the tfds data set.
      class_names: label -> name.
      description: for dataset_info.json.
      source: where it comes from, in words.
      identity: JSON that changes when an input does.
      encoding: "jpeg" or "png", how images are stored.
      scan: finds the images of every split; may use the workers.
    """

    name: str
    version: str
    class_names: tuple[str, ...]
    description: str
    source: str
    identity: dict[str, Any]
    encoding: str
    scan: Callable[[Pool], dict[str, Index]]

    def stored_name(self, storage: Storage) -> str:
        """The name with the size and quality, so that a resized copy cannot be mistaken."""
        suffix = f"_{storage.resize}q{storage.quality}" if storage.resize else ""
        return self.name + suffix
