"""Atomic writes; JSON files and JSON lines, valid whatever the numbers are."""

import ast
import json
import math
import os
import threading
from pathlib import Path

import pytest
from conftest import REPOSITORY

from imagenet_jax.files import (
    dump_json,
    parse_json,
    read_json,
    read_json_lines,
    write_atomically,
    write_json,
)

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "content", ["caf\u00e9", b"\xff\x00", lambda part: part.write_bytes(b"\xff\x00")]
)
def test_the_file_has_the_content_and_no_temporary_file_remains(tmp_path, content):
    path = tmp_path / "x.png"
    path.write_text("old")
    write_atomically(path, content)
    wanted = "caf\u00e9".encode() if isinstance(content, str) else b"\xff\x00"
    assert path.read_bytes() == wanted
    assert list(tmp_path.iterdir()) == [path]


def test_a_temporary_name_is_hidden_beside_its_file_and_never_the_same(tmp_path):
    path = tmp_path / "run.1" / "page.html"
    path.parent.mkdir()
    names = set()

    def write(part):
        names.add(part)
        part.touch()

    for _ in range(100):
        write_atomically(path, write)
    assert len(names) == 100
    assert {name.parent for name in names} == {path.parent}
    assert all(n.name.startswith(".page.html.") and n.suffix == ".html" for n in names)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), ValueError("bug")])
def test_a_failed_write_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "config.json"
    path.write_text("old")

    def fail(part):
        part.write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_disk_before_the_name_and_the_name_afterwards(tmp_path, monkeypatch):
    """Also after a power failure the file is the old one or the new one."""
    path, calls = tmp_path / "config.json", []
    fsync, replace = os.fsync, Path.replace

    def flushed(file):
        calls.append(("fsync", Path(f"/proc/self/fd/{file}").readlink()))
        fsync(file)

    def replaced(part, target):
        calls.append(("replace", part))
        return replace(part, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", replaced)
    write_atomically(path, "text")
    (_, part), *_ = calls
    assert calls == [("fsync", part), ("replace", part), ("fsync", tmp_path)]


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


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_json_is_read_back(tmp_path, indent):
    value = {"loss": float("inf"), "names": ["caf\u00e9", None]}
    write_json(tmp_path / "x.json", value, indent=indent)
    assert (tmp_path / "x.json").read_text().endswith("\n")
    assert read_json(tmp_path / "x.json") == value


def test_json_lines_end_before_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"step": 2')
    assert read_json_lines(path) == [{"step": 1}]
    with pytest.raises(ValueError, match="line 2"):
        read_json_lines(path, skip_torn=False)


def test_a_damaged_json_line_is_named_or_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2: "):
        read_json_lines(path)
    assert read_json_lines(path, skip_damaged=True) == [{"step": 1}, {"step": 3}]


def strictly(text):
    """What a parser that follows RFC 8259 reads."""

    def refuse(literal):
        raise ValueError(literal)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"step": 2, "loss": NAN}, {"step": 2, "loss": None, "nonfinite_values": {"loss": "nan"}}),
        (
            {"also": [{"loss": -INF, "top1": 0.5}], "top1": 1.0},
            {
                "also": [{"loss": None, "top1": 0.5, "nonfinite_values": {"loss": "-inf"}}],
                "top1": 1.0,
            },
        ),
        (
            {"a/b": [1.0, [INF, 2]], "none": None},
            {"a/b": [1.0, [None, 2]], "none": None, "nonfinite_values": {"a/b/1/0": "inf"}},
        ),
        ({"grad_norm/layer1": INF}, None),
        ([{"x": NAN}, 1], [{"x": None, "nonfinite_values": {"x": "nan"}}, 1]),
        ({"nonfinite": {"policy": "stop"}}, {"nonfinite": {"policy": "stop"}}),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_any_parser_reads_the_json_and_ours_restores_nonfinite_numbers(value, written, indent):
    text = dump_json(value, indent=indent)
    if written:
        assert strictly(text) == written
    back = parse_json(text)
    assert repr(back) == repr(value)  # NaN is not equal to itself


def test_a_nonfinite_number_outside_of_an_object_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        dump_json([1.0, NAN])


def test_literals_of_older_files_are_read():
    back = parse_json('{"loss": NaN, "x": [-Infinity]}')
    assert math.isnan(back["loss"])
    assert back["x"] == [-INF]


@pytest.mark.parametrize("path", ["y", "x/3", "x/y", "x/0/0", "x/0"])
def test_a_path_that_does_not_exist_is_an_error(path):
    with pytest.raises(ValueError, match="nonfinite_values names"):
        parse_json(json.dumps({"x": [1.0], "nonfinite_values": {path: "nan"}}))


def test_everything_goes_through_one_writer_and_reader():
    importing = [
        path.name
        for path in (REPOSITORY / "imagenet_jax").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import)
        and any(alias.name == "json" for alias in node.names)
        or isinstance(node, ast.ImportFrom)
        and node.module == "json"
    ]
    assert importing == ["files.py"]
