"""Provenance of a run: the code, versions, machine and data that its results depend on."""

import contextlib
import hashlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.extend import backend

import imagenet_jax
from imagenet_jax.config import python_files
from imagenet_jax.runtime import xla

ROOT = Path(imagenet_jax.__file__).parents[1]
# Entries that must be equal in all processes of a run; kernels and processors may differ.
SAME_IN_EVERY_PROCESS = (
    "git_revision", "git_dirty", "code_sha256", "packages", "processes", "data", "initial_weights",
)  # fmt: skip
_PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy",
    "ml_dtypes", "pillow", "simplejpeg", "opencv-python-headless", "numba",
)  # fmt: skip
_CPUINFO = Path("/proc/cpuinfo")
# XLA and Eigen choose kernels by the vector instructions and block sizes by the cache.
_VECTORS = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni")
_MODEL = ("model name", "cpu family", "model", "stepping", "cache size")
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
# Environment variables that change the rounding of the same program.
_VARIABLES = (
    "XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION",
    "NVIDIA_TF32_OVERRIDE",
)  # fmt: skip
_PLUGINS = ("jax-cuda", "nvidia-cudnn", "nvidia-cublas", "libtpu")  # prefixes of package names


def collect_provenance(fingerprints: dict[str, str]) -> dict[str, Any]:
    """Return code, versions, devices, machine and data ({split: fingerprint}) of this process."""
    return {
        **find_revision(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "devices": [d.device_kind for d in jax.devices()],
        "processes": jax.process_count(),
        "machine": describe_machine(),
        "data": fingerprints,
    }


def find_revision(root: Path = ROOT) -> dict[str, Any]:
    """Return the identity of the code of the package `imagenet_jax` in the folder `root`.

    In a git checkout: `git_revision`, `git_dirty`, and `git_untracked`, the untracked files that
    this process executes. A checkout is dirty if there are such files or if tracked files differ
    from the revision. Other untracked files do not count, nor does baselines/, which holds results.

    Elsewhere `git_revision` is None, even inside another repository; `version` and `code_sha256`
    identify the installed package.
    """
    package = imagenet_jax.__name__
    if not _git(root, "ls-files", "--", package):
        return {
            "git_revision": None,
            "git_dirty": False,
            "version": imagenet_jax.__version__,
            "code_sha256": _hash_files(root, package),
        }
    changes = ("status", "--porcelain", "--untracked-files=no", "--", ".", ":!baselines")
    untracked = _find_untracked(root)
    return {
        "git_revision": _git(root, "rev-parse", "HEAD"),
        "git_dirty": bool(untracked or _git(root, *changes)),
        "git_untracked": untracked,
    }


def describe_code(provenance: dict[str, Any], digits: int = 64) -> str:
    """Return the git revision, or VERSION+HASH of an installed package; "" if neither is known."""
    if provenance.get("git_revision"):
        return provenance["git_revision"][:digits]
    if "code_sha256" in provenance:
        return f"{provenance['version']}+{provenance['code_sha256'][:digits]}"
    return ""


def describe_machine() -> dict[str, Any]:
    """Return the processor, the accelerator's software and the settings of this process.

    If these, the versions and the devices are equal, a program computes the same bits.
    """
    return {
        "cpu": _describe_cpu(),
        "accelerator": _describe_accelerator(),
        "environment": {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)},
    }


def _hash_files(root: Path, package: str) -> str:
    """Return the SHA-256 of the output of `sha256sum` for the files of a package, sorted by name.

    Equivalent to: `cd ROOT; find PACKAGE -type f -not -path "*/__pycache__/*" | LC_ALL=C sort |
    xargs sha256sum | sha256sum`.
    """
    files = (p for p in (root / package).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    whole = hashlib.sha256()
    for name in sorted(path.relative_to(root).as_posix() for path in files):
        whole.update(f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n".encode())
    return whole.hexdigest()


def _find_untracked(root: Path) -> list[str]:
    """Return the loaded modules below `root` and files of the config that git does not track."""
    root = root.resolve()
    tracked = {root / name for name in (_git(root, "ls-files", "-z") or "").split("\0")}
    loaded = python_files.list_files(list(sys.modules.values()))
    own = {path for path in loaded if path.is_relative_to(root)} | python_files.executed
    libraries = [Path(path).resolve() for path in (sys.prefix, sys.base_prefix)]
    unknown = (p for p in sorted(own - tracked) if not any(map(p.is_relative_to, libraries)))
    return [str(path.relative_to(root) if path.is_relative_to(root) else path) for path in unknown]


def _git(root: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", root, *args], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _describe_cpu() -> dict[str, Any]:
    # XLA divides a computation among the cores that this process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):  # only Linux has this file
        for line in _CPUINFO.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", "").split()
    vectors = [f for f in flags if f in _VECTORS or f.startswith(("avx512", "amx"))]
    return {
        "cores": cores,
        "architecture": platform.machine(),
        **{name: fields[name] for name in _MODEL if name in fields},
        "vectors": sorted(vectors),
    }


def _describe_accelerator() -> dict[str, str]:
    """Return compiler options, and versions of runtime, libraries and driver; {} on the CPU."""
    client = backend.get_backend()
    if client.platform == "cpu":
        return {}
    found = {"runtime": " ".join(client.platform_version.split())}
    found |= {name: str(value) for name, value in (xla.options() or {}).items()}
    for package in metadata.distributions():
        name = package.metadata["Name"] or ""
        if name.startswith(_PLUGINS):
            found[name] = package.version
    with contextlib.suppress(OSError):
        found["driver"] = _NVIDIA_DRIVER.read_text().partition("\n")[0]
    return found
