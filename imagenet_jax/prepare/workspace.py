"""The directory in which a data set grows: what is finished survives a kill."""

import fcntl
import shutil
from pathlib import Path
from typing import Any, BinaryIO

from imagenet_jax import strict_json
from imagenet_jax.errors import UserError
from imagenet_jax.files import read_json, write_json
from imagenet_jax.prepare.shards import Done

MANIFEST = "prepared.json"  # stays in the finished directory: where its records came from
_LOCK = "lock"


class Workspace:
    """A hidden sibling of `target` with the shards so far and a manifest of them.

    Attributes:
      path: the directory.
      fate: "new", "resumed", or "restarted" because the inputs or options have changed.
    """

    def __init__(self, target: Path, identity: dict[str, Any]):
        """Open or make it. `identity` (JSON) is what the shards depend on.

        Raises UserError where another process works in it.
        """
        self.path, self._target = target.with_name(f".{target.name}.part"), target
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock: BinaryIO = (self.path / _LOCK).open("wb")
        except OSError as e:
            raise UserError(f"--out: {self.path} cannot be written: {e.strerror}") from e
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            self._lock.close()
            raise UserError(f"another process is preparing {target}; wait for it to end") from e
        identity = strict_json.loads(strict_json.dumps(identity))  # as it will be read back
        manifest = self._read()
        self.fate = "new"
        if manifest:
            self.fate = "resumed" if manifest.get("inputs") == identity else "restarted"
        if not manifest or self.fate != "resumed":
            self._remove(lambda name: True)
            manifest = {"inputs": identity, "shards": {}}
        self._manifest: dict[str, Any] = manifest
        self._remove(lambda name: name.startswith("."))  # what a kill left

    def done(self, file: str) -> Done | None:
        """The shard `file`, if it is finished and still whole."""
        entry = self._manifest["shards"].get(file)
        path = self.path / file
        whole = entry and path.is_file() and path.stat().st_size == entry["file_size"]
        return Done(**entry) if whole else None

    def finished(self, file: str, done: Done) -> None:
        """The shard `file` is written; a kill from here on does not undo it."""
        self._manifest["shards"][file] = done.as_json()
        write_json(self.path / MANIFEST, self._manifest, indent=1)

    def publish(self, files: list[str]) -> None:
        """Rename to the target, with `files`, the manifest and tfds's metadata, and no more."""
        keep = {*files, MANIFEST, "dataset_info.json", "features.json"}
        self._remove(lambda name: name not in keep and not name.endswith(".labels.txt"))
        (self.path / _LOCK).unlink()
        self.path.rename(self._target)
        self.close()

    def close(self) -> None:
        """Let another process in."""
        self._lock.close()

    def _read(self) -> dict[str, Any] | None:
        try:
            manifest = read_json(self.path / MANIFEST)
        except (OSError, ValueError):
            return None
        return manifest if isinstance(manifest, dict) and "shards" in manifest else None

    def _remove(self, unwanted: Any) -> None:
        for entry in self.path.iterdir():
            if entry.name != _LOCK and unwanted(entry.name):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def provenance(target: Path) -> str | None:
    """What the finished directory `target` was prepared from, in words; None where unknown."""
    try:
        return read_json(target / MANIFEST)["inputs"]["source"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
