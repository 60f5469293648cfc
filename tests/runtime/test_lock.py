"""The lock of a workdir: its holder, when it is stale, who is refused."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from imagenet_jax.errors import UserError
from imagenet_jax.runtime import lock
from imagenet_jax.runtime.lock import Lock, is_training


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, "TOUCH_SECONDS", 0.05)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.6)


@pytest.fixture
def other_process():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def _write(workdir, **holder):
    (workdir / "running.json").write_text(json.dumps(holder))


def test_the_file_exists_while_the_lock_is_held(tmp_path):
    workdir = tmp_path / "new" / "run"
    assert not is_training(workdir)
    with Lock(workdir):
        holder = json.loads((workdir / "running.json").read_text())
        assert (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid())
        assert is_training(workdir)
    assert not is_training(workdir)
    assert list(workdir.iterdir()) == []


def test_second_process_is_refused_naming_host_and_pid(tmp_path, other_process):
    _write(tmp_path, host=socket.gethostname(), pid=other_process.pid)
    host = socket.gethostname()
    with (
        pytest.raises(UserError, match=f"process {other_process.pid} on {host} trains in"),
        Lock(tmp_path),
    ):
        pass
    assert is_training(tmp_path)
    assert (tmp_path / "running.json").exists()  # still held by the other process


def test_the_lock_of_a_killed_process_is_stale(tmp_path, other_process):
    other_process.kill()
    other_process.wait()
    _write(tmp_path, host=socket.gethostname(), pid=other_process.pid)
    assert not is_training(tmp_path)
    with Lock(tmp_path):
        assert json.loads((tmp_path / "running.json").read_text())["pid"] == os.getpid()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="start times are read in /proc")
def test_a_later_process_with_the_same_number_is_not_the_holder(tmp_path, other_process):
    """In a restarted container the first process always has number 1."""
    for pid in (os.getpid(), other_process.pid):
        _write(tmp_path, host=socket.gethostname(), pid=pid, started="another boot 17")
        assert not is_training(tmp_path)
        with Lock(tmp_path):
            pass


def test_a_process_on_another_host_is_watched(tmp_path, capsys):
    _write(tmp_path, host="elsewhere", pid=1)
    with Lock(tmp_path):  # nothing touches the file: the host is gone
        pass
    assert "watching" in capsys.readouterr().out

    _write(tmp_path, host="elsewhere", pid=1)
    stop = threading.Event()

    def touch():
        while not stop.wait(0.05):
            os.utime(tmp_path / "running.json")

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.raises(UserError, match="process 1 on elsewhere"), Lock(tmp_path):
            pass
    finally:
        stop.set()
        thread.join()
    assert is_training(tmp_path)
    os.utime(tmp_path / "running.json", (time.time() - 3600,) * 2)
    assert not is_training(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_torn_file_is_stale_if_nothing_touches_it(tmp_path, text):
    (tmp_path / "running.json").write_text(text)
    with Lock(tmp_path):
        pass


def test_the_holder_touches_the_file(tmp_path):
    with Lock(tmp_path):
        before = (tmp_path / "running.json").stat().st_mtime_ns
        deadline = time.time() + 10
        while (tmp_path / "running.json").stat().st_mtime_ns == before:
            assert time.time() < deadline
            time.sleep(0.02)


def test_a_process_whose_lock_was_taken_over_exits(tmp_path, monkeypatch, capfd):
    codes = []
    monkeypatch.setattr(lock.os, "_exit", codes.append)
    with Lock(tmp_path):
        _write(tmp_path, host="elsewhere", pid=7)
        deadline = time.time() + 10
        while not codes:
            assert time.time() < deadline
            time.sleep(0.02)
    assert codes[0] == 1
    assert "process 7 on elsewhere took over" in capfd.readouterr().err
    assert (tmp_path / "running.json").exists()


def test_one_of_several_processes_gets_a_stale_lock(tmp_path, other_process):
    other_process.kill()
    other_process.wait()
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from imagenet_jax.runtime.lock import Lock\n"
        "from imagenet_jax.errors import UserError\n"
        "print('ready', flush=True); input()\n"
        "try:\n"
        "    with Lock(Path(sys.argv[1])):\n"
        "        print('got it', flush=True); input()\n"
        "except UserError:\n"
        "    print('refused', flush=True); input()\n"
    )
    start = [sys.executable, "-c", code, str(tmp_path)]
    processes = [
        subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    _write(tmp_path, host=socket.gethostname(), pid=other_process.pid)
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.stdout.readline().strip() for process in processes]
    for process in processes:
        process.communicate("\n")
    assert sorted(answers) == ["got it", "refused", "refused", "refused"]


def test_a_workdir_that_cannot_be_created_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="--workdir=.*cannot be written"),
        Lock(tmp_path / "file" / "x"),
    ):
        pass


def test_the_lock_works_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with Lock(tmp_path):
        holder = json.loads((tmp_path / "running.json").read_text())
        assert holder["pid"] == os.getpid()
        with pytest.raises(UserError, match=f"process {os.getpid()} on"), Lock(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def namespace(monkeypatch):
    """The namespace of this process, and those of other containers with the same host name."""
    monkeypatch.setattr(lock, "_process_namespace", lambda: "boot pid:[1]")
    return SimpleNamespace(own="boot pid:[1]", other="boot pid:[2]", later="another boot pid:[1]")


def _touching(path, stop):
    while not stop.wait(0.05):
        os.utime(path)


@pytest.mark.parametrize("where", ["other", "later"])
def test_a_process_of_another_container_is_watched_although_its_number_is_unused_here(
    tmp_path, other_process, namespace, where
):
    other_process.kill()
    other_process.wait()
    holder = {"host": socket.gethostname(), "pid": other_process.pid, "started": "boot 17"}
    _write(tmp_path, **holder, namespace=getattr(namespace, where))
    stop = threading.Event()
    thread = threading.Thread(target=_touching, args=(tmp_path / "running.json", stop))
    thread.start()
    try:
        with pytest.raises(UserError, match=f"process {other_process.pid} on"), Lock(tmp_path):
            pass
        assert is_training(tmp_path)
    finally:
        stop.set()
        thread.join()
    with Lock(tmp_path):  # the touches have stopped
        pass


def test_a_process_number_is_checked_in_its_own_namespace(
    tmp_path, other_process, namespace, capsys
):
    holder = {"host": "a former name", "namespace": namespace.own, "pid": other_process.pid}
    _write(tmp_path, **holder)
    assert is_training(tmp_path)
    other_process.kill()
    other_process.wait()
    assert not is_training(tmp_path)
    with Lock(tmp_path):
        pass
    assert "watching" not in capsys.readouterr().out


def test_the_namespace_is_that_of_the_kernel(tmp_path):
    with Lock(tmp_path):
        holder = json.loads((tmp_path / "running.json").read_text())
    assert f"pid:[{Path('/proc/self/ns/pid').stat().st_ino}]" in holder["namespace"]


def test_two_processes_with_equal_number_and_start_time_have_different_locks(
    tmp_path, monkeypatch, capfd
):
    """Each is the first process of its container."""
    codes, names = [], []
    link = os.link
    monkeypatch.setattr(lock.os, "_exit", codes.append)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(lock, "_start_time", lambda _: None)
    monkeypatch.setattr(os, "link", lambda a, b: (names.append(a), link(a, b)))
    with Lock(tmp_path):
        (tmp_path / "running.json").unlink()
        with Lock(tmp_path):
            deadline = time.time() + 10
            while not codes:
                assert time.time() < deadline
                time.sleep(0.02)
    assert "took over" in capfd.readouterr().err
    assert len(set(names)) == 2
