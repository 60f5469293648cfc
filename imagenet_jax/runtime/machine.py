"""What of a machine decides the last bits of a result, beside its devices' names."""

import contextlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from jax.extend import backend

_CPUINFO = Path("/proc/cpuinfo")
# XLA and Eigen choose their kernels by the first, and sizes of blocks by the second.
_VECTORS = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni")
_MODEL = ("model name", "cpu family", "model", "stepping", "cache size")
_NVIDIA = Path("/proc/driver/nvidia/version")
# Environment variables that change how the same program rounds.
_VARIABLES = (
    "XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION",
    "NVIDIA_TF32_OVERRIDE",
)  # fmt: skip
_PLUGINS = ("jax-cuda", "nvidia-cudnn", "nvidia-cublas", "libtpu")  # starts of package names


def machine() -> dict[str, Any]:
    """Processor, accelerator's software and settings of this process, as plain values.

    With the same entries, versions and devices the same program gives the same bits.
    """
    return {
        "cpu": _cpu(),
        "accelerator": _accelerator(),
        "environment": {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)},
    }


def _cpu() -> dict[str, Any]:
    # A computation is divided among the cores that this process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):  # Linux alone has it
        for line in _CPUINFO.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    found = {name: fields[name] for name in _MODEL if name in fields}
    flags = fields.get("flags", "").split()
    vectors = [f for f in flags if f in _VECTORS or f.startswith(("avx512", "amx"))]
    return (
        {"cores": cores, "architecture": platform.machine()} | found | {"vectors": sorted(vectors)}
    )


def _accelerator() -> dict[str, str]:
    """Versions of what drives the accelerator; {} on the CPU."""
    client = backend.get_backend()
    if client.platform == "cpu":
        return {}
    found = {"runtime": " ".join(client.platform_version.split())}
    for package in metadata.distributions():
        name = package.metadata["Name"] or ""
        if name.startswith(_PLUGINS):
            found[name] = package.version
    with contextlib.suppress(OSError):
        found["driver"] = _NVIDIA.read_text().partition("\n")[0]
    return found
