"""Look into tar archives, and archives in archives, in place: nothing is ever unpacked."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from imagenet_jax.errors import UserError


class Member(NamedTuple):
    """A file in an archive: base name, and where its bytes are in the outermost archive."""

    name: str
    offset: int
    size: int


def members(path: Path, within: Member | None = None) -> Iterator[Member]:
    """The files of the tar `path`, or of the tar that is its member `within`.

    Raises UserError for an archive that is no tar or is cut off, and for a name that points out of
    the archive.
    """
    where = f"{path}: {within.name}" if within else str(path)
    try:
        with path.open("rb") as file:
            base, end = (within.offset, within.size) if within else (0, path.stat().st_size)
            view = _Window(file, base, end)
            with tarfile.open(fileobj=view, mode="r:") as tar:
                for info in tar:
                    if info.isdir():
                        continue
                    _refuse_escape(where, info.name)
                    if not info.isreg():
                        raise UserError(f"{where}: {info.name} is a link or device, not a file")
                    if info.offset_data + info.size > end:
                        raise UserError(f"{where} is cut off in {info.name}: download it again")
                    name = PurePosixPath(info.name).name
                    yield Member(name, base + info.offset_data, info.size)
                # tarfile takes whatever is no header for the end; a real end is a block of zeros.
                view.seek(tar.offset)
                if view.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise UserError(f"{where} is cut off or damaged: download it again")
    except tarfile.TarError as e:
        raise UserError(f"{where} is no tar archive or is cut off ({e}): download it again") from e
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}") from e


def _refuse_escape(where: str, name: str) -> None:
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise UserError(f"{where} has a member {name!r}, which points out of the archive: refused")


class _Window(io.RawIOBase):
    """The bytes `base` to `base + size` of a file, as a file."""

    def __init__(self, file: BinaryIO, base: int, size: int):
        self._file, self._base, self._size, self._at = file, base, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        wanted = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._base + self._at)
        data = self._file.read(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
