"""Image files below a folder, through links, in the order of torchvision's ImageFolder."""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from imagenet_jax.errors import UserError, why_unreadable

IMAGE_SUFFIXES = (
    ".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
)  # fmt: skip
HIDDEN = "hidden, or made by the system"
_SYSTEM = {"@eaDir", "#recycle", "__MACOSX", "$RECYCLE.BIN", "lost+found"}


class File(NamedTuple):
    """A file: its path below the folder that was walked, size in bytes, time of change in ns."""

    name: str
    size: int
    mtime_ns: int


class Note(NamedTuple):
    """A file or folder by its path, and what is to say about it."""

    name: str
    reason: str


@dataclass
class Walk:
    """What lies below a folder.

    Attributes:
      files: the images, sorted by folder and then by name.
      left_out: what is no image.
      problems: what cannot be read.
    """

    files: list[File] = field(default_factory=list)
    left_out: list[Note] = field(default_factory=list)
    problems: list[Note] = field(default_factory=list)


def is_image(name: str) -> bool:
    """Whether a file of this name is an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_hidden(name: str) -> bool:
    """Whether `name` is hidden, or made by the system: never a class or an image."""
    return name.startswith(".") or name in _SYSTEM


def is_utf8(name: str) -> bool:
    """Whether `name`, as the operating system gave it, is UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def require_utf8(path: Path) -> None:
    """Raise UserError if `path` is not UTF-8, which the records and result files need."""
    if not is_utf8(str(path)):
        raise UserError(f"the name {os.fsencode(path)!r} is not UTF-8; rename it")


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder or a link to one; raises OSError for a link to nothing."""
    if entry.is_symlink():
        return stat.S_ISDIR(entry.stat().st_mode)
    return entry.is_dir()


def list_folder(folder: Path) -> list["os.DirEntry[str]"]:
    """What is in a folder, sorted by name."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def walk(root: Path) -> Walk:
    """Find the images below `root`; links are followed, except to a folder that they are in."""
    done = Walk()
    found: list[tuple[str, File]] = []
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while waiting:
        folder, parents = waiting.pop()
        try:
            status = (root / folder).stat()
            entries = list_folder(root / folder)
        except OSError as e:
            done.problems.append(Note(folder, why_unreadable(root / folder, e)))
            continue
        here = (status.st_dev, status.st_ino)
        if here in parents:
            done.left_out.append(Note(folder, "a link to a folder that it is in"))
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if is_hidden(entry.name):
                    done.left_out.append(Note(name, HIDDEN))
                elif is_folder(entry):
                    waiting.append((name, (*parents, here)))
                elif not is_image(entry.name):
                    done.left_out.append(Note(name, "no image suffix"))
                else:
                    status = entry.stat()
                    found.append((folder, File(name, status.st_size, status.st_mtime_ns)))
            except OSError as e:
                done.problems.append(Note(name, why_unreadable(Path(entry), e)))
    done.files = [file for _, file in sorted(found)]
    done.left_out.sort()
    done.problems.sort()
    return done
