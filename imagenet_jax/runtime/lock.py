"""The lock `running.json`, which names the process that trains in a workdir.

The holder touches the file every few seconds. A lock is stale if its process is gone, which can be
checked directly in the same process namespace, or if the file is no longer touched, which can also
be seen from other hosts and containers. A killed run can continue without any clean-up.
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

from imagenet_jax.errors import UserError, writing
from imagenet_jax.files import dump_json, parse_json

TOUCH_SECONDS = 5.0
# After six missed touches, the process is gone; a busy file server does not delay them that long.
STALE_SECONDS = 30.0
# For `is_training`, which compares the clocks of two hosts.
_STALE_SECONDS_BY_CLOCK = 300.0

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class Lock:
    """A context manager in which no other process trains in `workdir`, which is created if needed.

    In a run with several processes, only process 0 enters it.

    Raises UserError on entry if another process holds the lock or nothing can be written.
    """

    def __init__(self, workdir: Path, *, does: str = "trains", flag: str = "--workdir"):
        """Error messages say what the other process `does`, and which `flag` to change."""
        self._path, self._does, self._flag = workdir / "running.json", does, flag
        self._holder = {
            "host": socket.gethostname(),
            "namespace": _process_namespace(),
            "pid": os.getpid(),
            "started": _start_time(os.getpid()),
            "token": secrets.token_hex(8),  # two containers may agree in everything else
        }
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep_touching, daemon=True)

    def __enter__(self) -> "Lock":
        with writing(f"{self._flag}={self._path.parent}"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            while not self._create():
                self._remove_stale()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # in a workdir that became read-only, it goes stale
            if _read(self._path) == self._holder:
                self._path.unlink(missing_ok=True)

    def _hidden_path(self) -> Path:
        return self._path.with_name(f".{self._path.name}.{secrets.token_hex(8)}")

    def _create(self) -> bool:
        """Create the file atomically, unless it exists. Return whether this process holds it."""
        text = dump_json(self._holder) + "\n"
        part = self._hidden_path()
        try:
            part.write_text(text)
            os.link(part, self._path)
        except FileExistsError:
            return _read(self._path) == self._holder  # a file server may repeat a request
        except OSError as e:
            if e.errno not in _NO_HARD_LINKS:
                raise
            try:
                with self._path.open("x") as file:  # empty for a moment
                    file.write(text)
            except FileExistsError:
                return False
        finally:
            part.unlink(missing_ok=True)
        return True

    def _remove_stale(self) -> None:
        """Remove the lock if its process is gone. Raises UserError if the process exists."""
        holder = _read(self._path)
        if holder is None:
            return  # released in the meantime
        exists = _process_exists(holder)
        if exists or (exists is None and self._is_touched(holder)):
            raise UserError(
                f"process {holder.get('pid')} on {holder.get('host')} {self._does} in "
                f"{self._path.parent}: wait for it, stop it, or use another {self._flag}"
            )
        # Rename it first, so that only one of several processes that find the lock stale gets it.
        stale = self._hidden_path()
        try:
            self._path.rename(stale)
        except FileNotFoundError:
            return
        if _read(stale) != holder:  # another process was faster: this is its new lock
            with contextlib.suppress(FileExistsError):
                os.link(stale, self._path)
        stale.unlink()

    def _is_touched(self, holder: dict[str, Any]) -> bool:
        """Watch whether the holder, on another host or in another container, touches the lock."""
        print(
            f"{self._path} names process {holder.get('pid')} on {holder.get('host')}; watching for "
            f"{STALE_SECONDS:.0f} s whether it is alive",
            flush=True,
        )
        before = now = _touched(self._path)
        end = time.monotonic() + STALE_SECONDS
        while now == before and time.monotonic() < end:
            time.sleep(min(1.0, STALE_SECONDS / 10))
            now = _touched(self._path)
        return now not in (before, None)  # None: the lock was released

    def _keep_touching(self) -> None:
        while not self._released.wait(TOUCH_SECONDS):
            holder = None
            with contextlib.suppress(OSError):
                holder = _read(self._path)
                if holder == self._holder:
                    os.utime(self._path)  # needs no space, so works on a full disk
            if holder and holder != self._holder and not self._released.is_set():
                # This process was paused for over STALE_SECONDS, for example with its machine.
                print(
                    f"error: process {holder.get('pid')} on {holder.get('host')} took over "
                    f"{self._path.parent}; this process exits",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)


def is_training(workdir: Path) -> bool:
    """Return whether a process is training in `workdir`. The lock of a killed one is ignored."""
    path = workdir / "running.json"
    holder = _read(path)
    if holder is None:
        return False
    exists = _process_exists(holder)
    if exists is not None:
        return exists
    touched = _touched(path)
    return touched is not None and time.time() - touched / 1e9 < _STALE_SECONDS_BY_CLOCK


def _read(path: Path) -> dict[str, Any] | None:
    """Return the holder: None if there is no lock, {} if its process was killed during writing."""
    try:
        holder = parse_json(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _touched(path: Path) -> int | None:
    """Return the modification time in ns, or None if there is no file."""
    try:
        # Opening makes NFS ask the server instead of its attribute cache.
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _process_exists(holder: dict[str, Any]) -> bool | None:
    """Return whether the holder's process exists, or None if that cannot be checked from here."""
    here, there = _process_namespace(), holder.get("namespace")
    same = here == there if here and there else holder.get("host") == socket.gethostname()
    if not same or not isinstance(holder.get("pid"), int):
        return None
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it exists and belongs to another user
    started = _start_time(holder["pid"])
    # If the start time differs, it is another process with the same number.
    return started is None or holder.get("started") in (None, started)


def _process_namespace() -> str | None:
    """Return the boot ID and PID namespace, within which a process number is unique.

    Containers may have the same host name and the same process numbers. None without /proc.
    """
    try:
        return f"{_BOOT_ID.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _start_time(pid: int) -> str | None:
    """Return boot ID and start time of a process, in clock ticks, or None without /proc."""
    try:
        # Field 22, counted after the name in brackets, which may hold spaces (proc(5)).
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{_BOOT_ID.read_text().strip()} {ticks}"
    except (OSError, IndexError):
        return None
