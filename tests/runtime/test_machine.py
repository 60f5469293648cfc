"""What provenance.json says of the machine, against coreutils and NumPy."""

import platform
import subprocess

import pytest

from imagenet_jax.runtime.machine import machine


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
