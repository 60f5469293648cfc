"""What provenance.json says of the machine, against coreutils, NumPy and git."""

import platform
import subprocess

import pytest

from imagenet_jax.training.machine import machine
from imagenet_jax.training.workdir import revision_of


@pytest.mark.skipif(platform.system() != "Linux", reason="/proc/cpuinfo is Linux's")
def test_cpu_is_as_nproc_and_numpy_see_it():
    cpu = machine()["cpu"]
    assert cpu["cores"] == int(subprocess.check_output(["nproc"], text=True))
    assert cpu["architecture"] == platform.machine()
    if platform.machine() == "x86_64":
        from numpy._core._multiarray_umath import __cpu_features__ as numpy_sees

        for vector, feature in (("avx", "AVX"), ("avx2", "AVX2"), ("avx512f", "AVX512F")):
            assert (vector in cpu["vectors"]) == numpy_sees[feature]
        assert cpu["model name"] in subprocess.check_output(["lscpu"], text=True)


def test_settings_that_change_the_bits_are_told_and_others_are_not(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX2")
    monkeypatch.setenv("JAX_ENABLE_X64", "")
    monkeypatch.setenv("JAX_TRACEBACK_FILTERING", "off")
    settings = machine()["environment"]
    assert settings["XLA_FLAGS"] == "--xla_cpu_max_isa=AVX2"
    assert settings.keys().isdisjoint({"JAX_ENABLE_X64", "JAX_TRACEBACK_FILTERING"})


def test_a_changed_file_makes_a_checkout_dirty_and_an_unknown_one_does_not(tmp_path):
    assert revision_of(tmp_path) == {"git_revision": None, "git_dirty": False}

    def git(*args):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.check_output(["git", "-C", tmp_path, *identity, *args], text=True)

    git("init", "-q")
    (tmp_path / "step.py").write_text("lr = 1\n")
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "README.md").write_text("98 %\n")
    git("add", ".")
    git("commit", "-q", "-m", "Begin")
    clean = {"git_revision": git("rev-parse", "HEAD").strip(), "git_dirty": False}
    assert revision_of(tmp_path) == clean
    (tmp_path / "notes.txt").write_text("mine\n")
    (tmp_path / "baselines" / "README.md").unlink()  # to be published again
    assert revision_of(tmp_path) == clean
    (tmp_path / "step.py").write_text("lr = 2\n")
    assert revision_of(tmp_path) == clean | {"git_dirty": True}
