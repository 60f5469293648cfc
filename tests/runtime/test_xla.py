"""Compiler options, and the compilation cache, which replaces damaged entries."""

import errno
import os
import re
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from imagenet_jax.runtime.xla import keep_programs, options


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A cache that keeps every program, however short its compilation."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    jax.config.update(names[1], 0)
    yield tmp_path / "compiled"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def _compile():
    def small_program(x):
        return jnp.tanh(x) * 3

    return jax.jit(small_program)(jnp.ones(4))  # a new function: not in jax's memory


def _entry(directory):
    (path,) = directory.glob("jit_small_program-*-cache")
    return path


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda whole: b"", id="empty"),
        pytest.param(lambda whole: whole[: len(whole) // 2], id="cut"),
        pytest.param(lambda whole: b"<html>" * 99, id="garbage"),
        pytest.param(lambda whole: whole[:-9] + bytes(9), id="zeros"),
        pytest.param(lambda whole: zlib.compress(b"\0\0\0\1 no program"), id="not a program"),
    ],
)
def test_a_damaged_entry_is_written_again(programs, capsys, damage):
    with keep_programs(programs):
        expected = _compile()
        path = _entry(programs)
        whole = path.read_bytes()
        bystander = programs / "jit_small-0123-cache"
        bystander.write_bytes(b"")
        path.write_bytes(damage(whole))
        assert (_compile() == expected).all()
        assert len(zlib.decompress(_entry(programs).read_bytes())) > 1000
        assert bystander.exists()  # another run may be writing it now
        said = capsys.readouterr().err
        assert re.fullmatch(r"the compiled program jit_small_program in .* again\n", said)
        assert str(programs) in said
        _compile()
        assert capsys.readouterr().err == ""


def test_a_damaged_entry_that_cannot_be_removed_stays(programs, capsys, monkeypatch):
    """As in another user's folder: the run continues and compiles."""

    def refuse(path, missing_ok=False):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    with keep_programs(programs):
        expected = _compile()
        path = _entry(programs)
        path.write_bytes(b"")
        monkeypatch.setattr(Path, "unlink", refuse)
        assert (_compile() == expected).all()
    said = capsys.readouterr().err
    assert said.endswith("again; cannot remove it: Operation not permitted\n")


def test_intact_entries_of_another_shape_stay(programs):
    with keep_programs(programs):
        _compile()
        whole = _entry(programs)
        torn = whole.with_name("jit_small_program-0123-cache")
        kept = whole.read_bytes()
        torn.write_bytes(kept)
        whole.write_bytes(kept[:50])
        _compile()
    assert torn.read_bytes() == kept
    assert zlib.decompress(whole.read_bytes())


def test_a_shared_folder_is_repaired_too(programs, monkeypatch):
    shared = programs.with_name("shared")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(shared))
    jax.config.update("jax_compilation_cache_dir", str(shared))  # as jax reads the variable
    compilation_cache.reset_cache()
    with keep_programs(programs):
        _compile()
        _entry(shared).write_bytes(b"")
        _compile()
        assert _entry(shared).stat().st_size > 0
    assert not programs.exists()


@pytest.mark.parametrize(
    ("platform", "devices", "flags", "expected"),
    [
        ("cpu", 1, "", ["xla_cpu_experimental_ynn_fusion_type"]),
        ("cuda", 8, "", ["xla_gpu_enable_latency_hiding_scheduler"]),
        ("gpu", 1, "", []),
        ("tpu", 8, "", []),
        ("cuda", 8, "--xla_gpu_enable_latency_hiding_scheduler=false --xla_dump_to=x", []),
    ],
)
def test_options_follow_platform_devices_and_xla_flags(
    monkeypatch, platform, devices, flags, expected
):
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert list(options(platform=platform, devices=devices) or {}) == expected
