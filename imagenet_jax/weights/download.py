"""Download weights files into a cache: resumable, verified by hash, safe in several processes."""

import contextlib
import fcntl
import hashlib
import http.client
import logging
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
    """Download `url` to `path`, unless that file exists and has the hash.

    A file is hashed once, and again only if it changes. Data goes to a hidden file next to `path`,
    which a later call continues. The file is renamed once it is complete and its hash is correct.
    If another process is downloading the same file, wait for it.

    Args:
      sha256: first digits of the file's SHA-256 in hexadecimal; "": do not check.

    Raises UserError if the file cannot be downloaded or written, or has a different hash.
    """
    if path.is_file():
        _check_copy(path, sha256, url)
        return
    part = path.with_name(f".{path.name}.part")
    with _locked(path.with_name(f".{path.name}.lock")):
        if path.is_file():  # another process has downloaded it
            return
        resumed = part.is_file() and part.stat().st_size > 0
        _receive(url, part, path)
        if resumed and not _hash(part).startswith(sha256):  # the file on the server has changed
            part.unlink()
            _receive(url, part, path)
        _require_hash(part, sha256, url, path)
        with writing(path):
            part.replace(path)
        _record_check(path, sha256)


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
            with announce(f"downloading {repository}"), _silent("huggingface_hub"):
                found = get_hf_file_metadata(hf_hub_url(repository, name))
                path = Path(
                    hf_hub_download(repository, name, revision=found.commit_hash, local_dir=folder)
                )
        except Exception as e:  # of its HTTP client or the file system
            # LocalEntryNotFoundError: the server cannot be reached.
            if isinstance(e, EntryNotFoundError) and not isinstance(e, LocalEntryNotFoundError):
                missing = e
                continue
            reason = one_line(e).rstrip(".") or type(e).__name__
            raise UserError(f"{url} cannot be downloaded: {reason}; {by_hand}") from e
        # The ETag of a file in Git LFS, as of all large files, is its SHA-256.
        etag = found.etag or ""
        _require_hash(path, etag if len(etag) == 64 else "", url, path)
        return path
    raise UserError(f"{repository} has none of {', '.join(names)} on Hugging Face") from missing


def _by_hand(url: str, path: Path) -> str:
    return f"to use a copy, download {url} elsewhere and put it at {path}"


@contextlib.contextmanager
def _silent(library: str) -> Iterator[None]:
    """Log only critical errors of `library`: its warnings repeat the error that it raises."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


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


def _require_hash(file: Path, sha256: str, url: str, path: Path) -> None:
    """Delete `file` and raise UserError unless its SHA-256 starts with the digits `sha256`."""
    digest = _hash(file)
    if not digest.startswith(sha256):
        file.unlink()
        raise UserError(
            f"{url} has SHA-256 {digest[: max(len(sha256), 8)]}..., not {sha256}...: the file was "
            f"replaced, or damaged in transit; {_by_hand(url, path)}"
        )


def _check_copy(path: Path, sha256: str, url: str) -> None:
    """Raise UserError if the file, which may be put there by hand, has another hash than `url`."""
    record = _record_of(path)
    if sha256 and not (record.is_file() and record.read_text() == _describe(path, sha256)):
        with announce(f"checking {path.name}"):
            digest = _hash(path)
        if not digest.startswith(sha256):
            raise UserError(
                f"{path} is not the file at {url}: its SHA-256 is {digest[: len(sha256)]}..., not "
                f"{sha256}...; remove it, or replace it with a copy of that file"
            )
        _record_check(path, sha256)


def _record_check(path: Path, sha256: str) -> None:
    """Record that the file has the hash. Without a record, it is hashed at each start."""
    with contextlib.suppress(OSError):
        _record_of(path).write_text(_describe(path, sha256))


def _record_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.checked")


def _describe(path: Path, sha256: str) -> str:
    """Return a text that changes if the file or its expected hash changes."""
    found = path.stat()
    return f"{sha256} {found.st_size} {found.st_mtime_ns}"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
