"""`running.json`: which process trains in a workdir. At most one does; followers see it end.

The mark names the process and is touched every few seconds. It is stale if the process is gone,
which is looked up where its number means the same, or if the touches have stopped, which is watched
from another host or container. A run that was killed is continued without anything to clean up.
"""

import contextlib
import errno
import os
import secrets
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from imagenet_jax import strict_json
from imagenet_jax.errors import UserError

BEAT_SECONDS = 5.0
# Without a touch for so long, the process is gone: six are missed, more than a busy file server's.
STALE_SECONDS = 30.0
# As a follower judges by two hosts' clocks, which may differ.
_FOLLOWED_SECONDS = 300.0

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class Lock:
    """While entered, this process is the one that trains in `workdir`; made if it is not there.

    Raises UserError on entry where another process trains there, or nothing can be written. Of
    several processes of one run the first one enters.
    """

    def __init__(self, workdir: Path, *, does: str = "trains", flag: str = "--workdir"):
        """The error that names another process says what it `does`, and which `flag` to change."""
        self._path, self._does, self._flag = workdir / "running.json", does, flag
        self._mark = {
            "host": socket.gethostname(),
            "namespace": _namespace(),
            "pid": os.getpid(),
            "started": _start_of(os.getpid()),
            "token": secrets.token_hex(8),  # of this mark: the rest may be equal in two containers
        }
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="running.json", daemon=True)

    def __enter__(self) -> "Lock":
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            while not self._create():
                self._remove_stale()
        except OSError as e:
            where = f"{self._flag}={self._path.parent}"
            raise UserError(f"{where} cannot be written: {e.strerror}") from e
        self._beats.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beats.join()
        with contextlib.suppress(OSError):  # a workdir that became read-only: it goes stale
            if _read(self._path) == self._mark:
                self._path.unlink(missing_ok=True)

    def _hidden(self) -> Path:
        """Return a new name beside the file that no other process uses."""
        return self._path.with_name(f".{self._path.name}.{secrets.token_hex(8)}")

    def _create(self) -> bool:
        """Whether the mark is ours now: it appears whole, or another one is there."""
        part = self._hidden()
        try:
            part.write_text(strict_json.dumps(self._mark) + "\n")
            os.link(part, self._path)
        except FileExistsError:
            return _read(self._path) == self._mark  # a file server may answer a request twice
        except OSError as e:
            if e.errno not in _NO_LINKS:
                raise
            return self._create_in_place()
        finally:
            part.unlink(missing_ok=True)
        return True

    def _create_in_place(self) -> bool:
        """As `_create`, on a file system without hard links: for a moment the mark is empty."""
        try:
            with self._path.open("x") as file:
                file.write(strict_json.dumps(self._mark) + "\n")
        except FileExistsError:
            return False
        return True

    def _remove_stale(self) -> None:
        """Take the mark of a process that is gone away; UserError where it is not."""
        mark = _read(self._path)
        if mark is None:
            return  # it has ended in between
        if _runs(mark) or (_runs(mark) is None and self._is_touched(mark)):
            raise UserError(
                f"process {mark.get('pid')} on {mark.get('host')} {self._does} in "
                f"{self._path.parent}: wait for it, stop it, or use another {self._flag}"
            )
        # Renamed first: of two processes that find the same stale mark, one gets it.
        stale = self._hidden()
        try:
            self._path.rename(stale)
        except FileNotFoundError:
            return
        if _read(stale) != mark:  # another process was quicker: this is its mark
            with contextlib.suppress(FileExistsError):
                os.link(stale, self._path)
        stale.unlink()

    def _is_touched(self, mark: dict[str, Any]) -> bool:
        """Whether a process that cannot be looked up from here is alive."""
        print(
            f"{self._path} names process {mark.get('pid')} on {mark.get('host')}; watching "
            f"{STALE_SECONDS:.0f} s whether it is alive",
            flush=True,
        )
        before = _touched(self._path)
        end = time.monotonic() + STALE_SECONDS
        while time.monotonic() < end:
            time.sleep(min(1.0, STALE_SECONDS / 10))
            now = _touched(self._path)
            if now != before:
                return now is not None  # None: it has ended
        return False

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                mark = _read(self._path)
                if mark == self._mark:
                    os.utime(self._path)  # takes no space: a full disk does not stop it
                    continue
            except OSError:
                continue
            if not self._ended.is_set() and mark:
                # This machine was suspended, say, for so long that another process took over.
                print(
                    f"error: process {mark.get('pid')} on {mark.get('host')} took over "
                    f"{self._path.parent}; this one ends",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)


def is_training(workdir: Path) -> bool:
    """Whether a process trains in `workdir` now; a killed one does not."""
    path = workdir / "running.json"
    mark = _read(path)
    if mark is None:
        return False
    runs = _runs(mark)
    if runs is not None:
        return runs
    touched = _touched(path)
    return touched is not None and time.time() - touched / 1e9 < _FOLLOWED_SECONDS


def _read(path: Path) -> dict[str, Any] | None:
    """The mark; None where there is none, {} where its writer was killed while writing it."""
    try:
        mark = strict_json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return mark if isinstance(mark, dict) else {}


def _touched(path: Path) -> int | None:
    """Time of the last touch in ns; None without a mark."""
    try:
        # Opened, not only asked for: NFS then looks at the server's attributes, not its own copy.
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _runs(mark: dict[str, Any]) -> bool | None:
    """Whether the process that a mark names exists; None if it cannot be looked up from here."""
    here, there = _namespace(), mark.get("namespace")
    same = here == there if here and there else mark.get("host") == socket.gethostname()
    if not same or not isinstance(mark.get("pid"), int):
        return None
    try:
        os.kill(mark["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it exists, and is somebody else's
    started = _start_of(mark["pid"])
    # Another start is another process with the same number.
    return started is None or mark.get("started") in (None, started)


def _namespace() -> str | None:
    """Return where a process number means the same: one boot of a kernel, and a PID namespace.

    Containers may share their host's name and number their processes alike. None without /proc.
    """
    try:
        return f"{_BOOT_ID.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _start_of(pid: int) -> str | None:
    """What tells a process from later ones of the same number; None where /proc does not say."""
    try:
        # Field 22, counted after the name in brackets, which may hold spaces (proc(5)).
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{_BOOT_ID.read_text().strip()} {ticks}"
    except (OSError, IndexError):
        return None
