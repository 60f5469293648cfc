"""The directory in which a data set is prepared: finished shards survive a kill."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from imagenet_jax.errors import UserError, writing
from imagenet_jax.files import dump_json, parse_json, read_json, write_json
from imagenet_jax.prepare.shards import WrittenShard

MANIFEST = "prepared.json"  # stays in the finished directory: where its records came from
_LOCK = "lock"


class Workspace:
    """A hidden sibling of `target` with the finished shards and a manifest of them.

    Attributes:
      path: the directory.
      fate: "new", "resumed", or "restarted" because the inputs or options have changed.
    """

    def __init__(self, target: Path, identity: dict[str, Any]):
        """Open or create the directory; `identity` (JSON) is what the shards depend on.

        Raises UserError if another process uses it.
        """
        self.path, self._target = target.with_name(f".{target.name}.part"), target
        with writing(f"--out: {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock: BinaryIO = (self.path / _LOCK).open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            self._lock.close()
            raise UserError(f"another process is preparing {target}; wait for it to end") from e
        identity = parse_json(dump_json(identity))  # as it will be read back
        manifest = self._read_manifest()
        self.fate = "new"
        if manifest:
            self.fate = "resumed" if manifest.get("inputs") == identity else "restarted"
        if not manifest or self.fate != "resumed":
            self._remove(lambda name: True)
            manifest = {"inputs": identity, "shards": {}}
        self._manifest: dict[str, Any] = manifest
        self._remove(lambda name: name.startswith("."))  # unfinished files of a killed run

    def find(self, file: str) -> WrittenShard | None:
        """Return the shard `file` if it is finished and its size is right, else None."""
        entry = self._manifest["shards"].get(file)
        path = self.path / file
        intact = entry and path.is_file() and path.stat().st_size == entry["file_size"]
        return WrittenShard(**entry) if intact else None

    def add(self, file: str, shard: WrittenShard) -> None:
        """Record that the shard `file` is finished; from here on a kill does not lose it."""
        self._manifest["shards"][file] = vars(shard)
        write_json(self.path / MANIFEST, self._manifest, indent=1)

    def publish(self, files: list[str]) -> None:
        """Rename the directory to the target, with only `files`, the manifest and tfds's files."""
        keep = {*files, MANIFEST, "dataset_info.json", "features.json"}
        self._remove(lambda name: name not in keep and not name.endswith(".labels.txt"))
        (self.path / _LOCK).unlink()
        self.path.rename(self._target)
        self.close()

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def _read_manifest(self) -> dict[str, Any] | None:
        try:
            manifest = read_json(self.path / MANIFEST)
        except (OSError, ValueError):
            return None
        return manifest if isinstance(manifest, dict) and "shards" in manifest else None

    def _remove(self, unwanted: Callable[[str], bool]) -> None:
        for entry in self.path.iterdir():
            if entry.name != _LOCK and unwanted(entry.name):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def read_origin(target: Path) -> str | None:
    """Return what the finished directory `target` was prepared from; None if unknown."""
    try:
        return read_json(target / MANIFEST)["inputs"]["source"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
