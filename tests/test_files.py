"""Temporary names: processes that share a directory and a number do not share a file."""

import os
import threading
from pathlib import Path

from imagenet_jax.files import part_of
from imagenet_jax.runtime.workdir import write_atomically


def test_a_name_is_hidden_beside_its_file_and_never_the_same(tmp_path):
    path = tmp_path / "run.1" / "config.json"
    names = {part_of(path, ".html") for _ in range(100)}
    assert len(names) == 100
    assert {name.parent for name in names} == {path.parent}
    assert all(n.name.startswith(".config.json.") and n.name.endswith(".html") for n in names)


def test_two_writers_of_the_same_number_write_whole_files(tmp_path, monkeypatch):
    """Both are process 1 of a container; the second begins before the first renames its file."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    replace, path = Path.replace, tmp_path / "config.json"
    second = threading.Thread(target=write_atomically, args=(path, "second"))

    def interrupted(part, target):
        if threading.current_thread() is not second:
            second.start()
            second.join()
            assert part.read_text() == "first"
        return replace(part, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    write_atomically(path, "first")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]
