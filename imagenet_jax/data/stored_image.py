"""Where one encoded image lies: in a file of its own, in a tar or in a parquet file."""

from pathlib import Path
from typing import NamedTuple

from imagenet_jax.data.parquet import read_row
from imagenet_jax.errors import UserError


class StoredImage(NamedTuple):
    """An image before it is read.

    Attributes:
      name: path below the folder, or the name within the shard.
      label: index of its class.
      size: bytes; approximate in parquet files.
      mtime_ns: when its file was changed; 0 for images in shards.
      shard: the file that holds it, a path below the folder; "": a file of its own, or, with an
        offset, the folder is the archive itself.
      offset: in bytes, -1 for a file of its own; in a parquet file see `parquet`.
    """

    name: str
    label: int
    size: int
    mtime_ns: int = 0
    shard: str = ""
    offset: int = -1

    @property
    def id(self) -> str:
        """The name that no other image of the split has."""
        return f"{self.shard}/{self.name}" if self.shard else self.name


def read_image(root: Path, image: StoredImage) -> bytes:
    """The encoded bytes of an image below `root`; raises UserError, naming it."""
    path = root / image.shard
    try:
        if image.offset < 0:
            path = root / image.name
            return path.read_bytes()
        if path.suffix == ".parquet":
            return read_row(path, image.offset)
        with path.open("rb") as file:
            file.seek(image.offset)
            encoded = file.read(image.size)
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}") from e
    if len(encoded) != image.size:
        raise UserError(f"{path} is cut off in {image.name}: download or write it again")
    return encoded
