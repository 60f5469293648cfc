"""Download weights files into a cache: resumable, verified by hash, safe in several processes."""

import contextlib
import fcntl
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from imagenet_jax.errors import UserError, expand_user, one_line, writing
from imagenet_jax.progress import ProgressReporter, announce

_ATTEMPTS = 4  # connections per file; each continues where the previous one was interrupted
_TIMEOUT = 60.0  # seconds without data after which a connection counts as interrupted
_CHUNK = 1 << 20  # bytes


class _Interrupted(Exception):
    """The connection closed before the end of the file; another attempt may finish it."""


def cache_folder() -> Path:
    """Return $IMAGENET_JAX_CACHE, by default imagenet_jax/ in the user's cache folder."""
    if given := os.environ.get("IMAGENET_JAX_CACHE"):
        return expand_user(given)
    return expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "imagenet_jax"


def download(url: str, path: Path, sha256: str = "") -> None:
    """Download `url` to `path`, unless that file exists.

    Data goes to a hidden file next to `path`, which a later call continues. The file is renamed
    once it is complete and its hash is correct. If another process is downloading the same file,
    wait for it. The hash of a file that was put there by hand is checked once.

    Args:
      sha256: first digits of the file's SHA-256 in hexadecimal; "": do not check.

    Raises UserError if the file cannot be downloaded or written, or has a different hash.
    """
    checked = path.with_name(f".{path.name}.checked")
    if path.is_file():
        if not checked.exists():
            if difference := _compare_hash(path, sha256):
                raise UserError(
                    f"{path} {difference}: remove it, or give its path instead of the name"
                )
            with contextlib.suppress(OSError):  # a cache that others write
                checked.touch()
        return
    part = path.with_name(f".{path.name}.part")
    with _locked(path.with_name(f".{path.name}.lock")):
        if path.is_file():  # another process has downloaded it
            return
        resumed = part.is_file() and part.stat().st_size > 0
        _receive(url, part, path)
        if resumed and _compare_hash(part, sha256):  # the file on the server has changed
            part.unlink()
            _receive(url, part, path)
        _require_download_hash(part, sha256, url, path)
        with writing(path):
            part.replace(path)
            checked.touch()


def download_from_hub(repository: str, names: tuple[str, ...], folder: Path) -> Path:
    """Download the first of `names` that a Hugging Face repository has, and return its path.

    A file that exists in `folder` is not downloaded again. huggingface_hub resumes and locks. The
    file must have the SHA-256 that Hugging Face names.

    Raises UserError if huggingface_hub is not installed, the download fails, or the hash differs.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    url = f"https://huggingface.co/{repository}/resolve/main/{names[0]}"
    by_hand = _by_hand(url, folder / names[0])
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as e:
        raise UserError(
            f"{repository} is on Hugging Face: pip install 'imagenet_jax[hub]', or {by_hand}"
        ) from e
    for name in names:
        try:
            with announce(f"downloading {repository}"):
                found = get_hf_file_metadata(hf_hub_url(repository, name))
                path = Path(
                    hf_hub_download(repository, name, revision=found.commit_hash, local_dir=folder)
                )
        except Exception as e:  # of the library, its HTTP client or the file system
            # LocalEntryNotFoundError, a subclass, means that there is no network.
            if isinstance(e, LocalEntryNotFoundError) or not isinstance(e, EntryNotFoundError):
                raise UserError(f"{url} cannot be downloaded: {one_line(e)}; {by_hand}") from e
            missing = e
        else:
            # The ETag of a file in Git LFS, as of all large files, is its SHA-256.
            etag = found.etag or ""
            _require_download_hash(path, etag if len(etag) == 64 else "", url, path)
            return path
    raise UserError(f"{repository} has none of {', '.join(names)} on Hugging Face") from missing


def _by_hand(url: str, path: Path) -> str:
    return f"to use a copy, download {url} elsewhere and put it at {path}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`. The system releases it if the process dies."""
    with contextlib.ExitStack() as stack:
        with writing(f"cache {path.parent} (IMAGENET_JAX_CACHE)"):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("ab"))
        with announce(f"waiting for another download of {path.stem[1:]}"):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _receive(url: str, part: Path, path: Path) -> None:
    """Download the missing end of `part` and flush it to disk."""
    for attempt in range(_ATTEMPTS):
        try:
            with writing(part):
                file = part.open("ab")
            with file:
                _continue(url, file, path.name)
                with writing(part):
                    file.flush()
                    os.fsync(file.fileno())
            return
        except urllib.error.HTTPError as e:
            by_hand = _by_hand(url, path)
            raise UserError(f"{url} returned {e.code} {e.reason}; {by_hand}") from e
        except (OSError, http.client.HTTPException, _Interrupted) as e:
            if attempt == _ATTEMPTS - 1:
                reason = getattr(e, "reason", None) or e
                raise UserError(
                    f"{url} cannot be downloaded: {one_line(reason) or type(e).__name__}; "
                    f"{_by_hand(url, path)}"
                ) from e


def _continue(url: str, file: BinaryIO, name: str) -> None:
    """Append the rest of `url` to `file`, or start again if the server sends the whole file."""
    start = file.tell()
    request = urllib.request.Request(url, headers={"User-Agent": "imagenet_jax"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as e:
        if e.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        with e:
            if e.headers.get("Content-Range") == f"bytes */{start}":
                return  # the file is complete
        file.truncate(0)
        raise _Interrupted("the server's file is shorter than what was received") from e
    with response:
        if start and response.status != http.client.PARTIAL_CONTENT:
            file.truncate(0)
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else 0
        with ProgressReporter(
            f"downloading {name}", total, already=start, unit="bytes", stderr=True
        ) as progress:
            done = start
            while chunk := response.read(_CHUNK):
                with writing(file.name):
                    file.write(chunk)
                done += len(chunk)
                progress.advance(len(chunk))
    if done < total:
        raise _Interrupted(f"the connection ended after {done:,} of {total:,} bytes")


def _require_download_hash(file: Path, sha256: str, url: str, path: Path) -> None:
    """Delete `file`, downloaded from `url` for `path`, and raise UserError if its hash differs."""
    if difference := _compare_hash(file, sha256):
        file.unlink()
        raise UserError(
            f"{url} {difference}: the file was replaced, or damaged in transit; "
            f"{_by_hand(url, path)}"
        )


def _compare_hash(file: Path, sha256: str) -> str:
    """Return "", or how the SHA-256 of `file` differs from one that starts with `sha256`."""
    digest = _hash(file)
    if digest.startswith(sha256):
        return ""
    return f"has SHA-256 {digest[: max(len(sha256), 8)]}..., not {sha256}..."


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
