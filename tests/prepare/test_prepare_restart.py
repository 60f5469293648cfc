"""Preparing again: after a kill, an error, an end; with other numbers of workers."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from miniatures import (
    TRAIN,
    WNIDS,
    content,
    hashes,
    prepare,
    read_records,
    write_tars,
)

from imagenet_jax.errors import UserError


def test_any_number_of_workers_writes_the_same_files(tars, tmp_path):
    one = prepare(tars, tmp_path / "one")
    two = prepare(tars, tmp_path / "two", "--workers=2")
    assert hashes(one) == hashes(two)


def test_a_finished_directory_is_reported_and_left_unchanged(tars, tmp_path, capsys):
    out = tmp_path / "out"
    path = prepare(tars, out)
    before = {p: p.stat().st_mtime_ns for p in path.iterdir()}
    capsys.readouterr()
    assert prepare(tars, out) == path
    assert f"from the archives in {tars}: nothing to do" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in path.iterdir()}


def test_an_error_keeps_finished_shards_until_the_inputs_change(tars, tmp_path, capsys):
    out = tmp_path / "out"
    train, val, val_wnids = content()
    # The last in the order of records, so that other shards come first.
    keys = {hashlib.md5(f"train{n}".encode()).digest(): (w, n) for w in WNIDS for n in train[w]}
    wnid, name = keys[max(keys)]
    whole = train[wnid][name]
    train[wnid][name] = whole[:300]
    write_tars(tars, train, val, val_wnids)
    with pytest.raises(UserError, match=rf"{name} in \S+{TRAIN} cannot be decoded"):
        prepare(tars, out)
    work = out / "imagenet2012" / ".5.1.0.part"
    assert not (out / "imagenet2012" / "5.1.0").exists()
    kept = json.loads((work / "prepared.json").read_text())["shards"]
    assert kept
    times = {name: (work / name).stat().st_mtime_ns for name in kept}
    assert not list(work.glob(".*"))
    with pytest.raises(UserError, match=name):
        prepare(tars, out)
    assert "shards are done already" in capsys.readouterr().out
    assert {p: (work / p).stat().st_mtime_ns for p in times} == times

    train[wnid][name] = whole
    write_tars(tars, train, val, val_wnids)
    path = prepare(tars, out)
    assert "the inputs or options have changed" in capsys.readouterr().out
    assert len(read_records(path, "train")) == 24


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.full)])
def test_a_restart_after_a_kill_rewrites_no_finished_shard(tmp_path, workers):
    tars, out = tmp_path / "tars", tmp_path / "out"
    write_tars(tars, *content(per_class=100))
    args = [f"--tars={tars}", f"--out={out}", f"--workers={workers}", "--shard_mb=0.01"]
    command = [sys.executable, "-m", "imagenet_jax.prepare", *args]
    manifest = out / "imagenet2012" / ".5.1.0.part" / "prepared.json"
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if manifest.exists() and len(json.loads(manifest.read_text())["shards"]) >= 3:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "imagenet2012" / "5.1.0").exists(), "finished before the kill"
    done = json.loads(manifest.read_text())["shards"]
    inodes = {name: (manifest.parent / name).stat().st_ino for name in done}
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert f"{len(done)} of " in again.stdout
    path = out / "imagenet2012" / "5.1.0"
    assert {name: (path / name).stat().st_ino for name in done} == inodes
    assert hashes(path) == hashes(prepare(tars, tmp_path / "whole"))


@pytest.mark.parametrize("moment", ["workers start", "workers work"])
def test_interrupted_ends_at_once_without_a_traceback(moment, tmp_path):
    """Ctrl-C reaches the workers too."""
    tars = tmp_path / "tars"
    write_tars(tars, *content(per_class=200))
    args = [f"--tars={tars}", f"--out={tmp_path / 'out'}", "--workers=2", "--shard_mb=0.01"]
    process = subprocess.Popen(
        [sys.executable, "-m", "imagenet_jax.prepare", *args],
        cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    manifest = tmp_path / "out" / "imagenet2012" / ".5.1.0.part" / "prepared.json"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def reached() -> bool:
        if moment == "workers work":
            return manifest.exists()
        return len(children.read_text().split()) > 1  # the first is the resource tracker

    while process.poll() is None and not reached():
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not list(manifest.parent.parent.glob("5.1.0"))
