"""The code that runs: a git revision and what git does not know of it, or an installed package."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import imagenet_jax
from imagenet_jax import config as config_io

ROOT = Path(imagenet_jax.__file__).parents[1]


def revision_of(root: Path = ROOT) -> dict[str, Any]:
    """Return what identifies the code of the package `imagenet_jax` in the folder `root`.

    In a git checkout: git_revision, git_dirty, and git_untracked, the files that this process runs
    and git does not know. Dirty is a checkout that has such files, or whose files differ from the
    revision; other files that git does not know do not count, nor do those in baselines/, which
    are results. Elsewhere git_revision is None: version and code_sha256 say what is installed,
    whatever repository it may lie in.
    """
    package = imagenet_jax.__name__
    if not _git(root, "ls-files", "--", package):
        return {
            "git_revision": None,
            "git_dirty": False,
            "version": imagenet_jax.__version__,
            "code_sha256": files_sha256(root, package),
        }
    changes = ("status", "--porcelain", "--untracked-files=no", "--", ".", ":!baselines")
    untracked = _untracked(root)
    return {
        "git_revision": _git(root, "rev-parse", "HEAD"),
        "git_dirty": bool(untracked or _git(root, *changes)),
        "git_untracked": untracked,
    }


def code_name(provenance: dict[str, Any], digits: int = 64) -> str:
    """Return the revision in a provenance, or VERSION+HASH of what was installed; "" if neither."""
    if provenance.get("git_revision"):
        return provenance["git_revision"][:digits]
    if "code_sha256" in provenance:
        return f"{provenance['version']}+{provenance['code_sha256'][:digits]}"
    return ""


def files_sha256(root: Path, package: str) -> str:
    """Return the SHA-256 of what `sha256sum` prints for the files of a package, sorted by name.

    `cd ROOT; find PACKAGE -type f -not -path "*/__pycache__/*" | LC_ALL=C sort | xargs sha256sum |
    sha256sum` prints it.
    """
    names = [
        path.relative_to(root).as_posix()
        for path in (root / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    whole = hashlib.sha256()
    for name in sorted(names):
        whole.update(f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n".encode())
    return whole.hexdigest()


def _untracked(root: Path) -> list[str]:
    """Return the modules below `root`, and the files of the config, that git does not know."""
    root = root.resolve()
    tracked = {root / name for name in (_git(root, "ls-files", "-z") or "").split("\0")}
    loaded = config_io.files_of(list(sys.modules.values()))
    own = {path for path in loaded if path.is_relative_to(root)} | config_io.executed
    libraries = [Path(path).resolve() for path in (sys.prefix, sys.base_prefix)]
    unknown = [
        path
        for path in sorted(own - tracked)
        if not any(path.is_relative_to(library) for library in libraries)
    ]
    return [str(path.relative_to(root) if path.is_relative_to(root) else path) for path in unknown]


def _git(root: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", root, *args], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
