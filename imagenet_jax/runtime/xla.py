"""XLA compiler options and the persistent compilation cache."""

import contextlib
import glob
import os
import re
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from imagenet_jax.runtime.processes import is_first

# jax's warning: name of the program, reason.
_UNREADABLE = r"Error reading persistent compilation cache entry for '([^']*)': (.*)"


# Overlap gradient reductions with computation, as NVIDIA's JAX images do
# (docs.nvidia.com/jax-toolbox/environment-variables). The effect was not timed; jax 0.10.2 compiles
# small programs in the same way without the option.
_SEVERAL_GPUS: dict[str, str | int] = {"xla_gpu_enable_latency_hiding_scheduler": True}
# YNNPACK fusions of jaxlib 0.12.0 on the CPU read uninitialized memory, so that bfloat16 networks
# return NaN (tests/models/test_bfloat16.py).
_CPU: dict[str, str | int] = {"xla_cpu_experimental_ynn_fusion_type": ""}


def options(
    *, platform: str = "", devices: int = 0, optimize: bool = True
) -> dict[str, str | int] | None:
    """Return options for `jax.jit(compiler_options=...)`, or None for the compiler's defaults.

    A flag in XLA_FLAGS overrides the option of the same name.

    Args:
      platform: platform to compile for; "": that of this process.
      devices: number of devices to compile for; 0: all devices of the run.
      optimize: False for a program that runs once, so that it compiles faster.
    """
    platform, devices = platform or jax.default_backend(), devices or jax.device_count()
    chosen: dict[str, str | int] = {}
    if platform == "cpu":
        chosen = _CPU if optimize else _CPU | {"xla_backend_optimization_level": 0}
    elif platform in ("gpu", "cuda") and devices > 1:
        chosen = _SEVERAL_GPUS
    given = re.findall(r"--(\w+)", os.environ.get("XLA_FLAGS", ""))
    return {name: value for name, value in chosen.items() if name not in given} or None


@contextlib.contextmanager
def keep_programs(directory: Path) -> Iterator[None]:
    """Keep the programs compiled in this block in `directory`, so that a restart loads them.

    If JAX_COMPILATION_CACHE_DIR is set, it replaces `directory`, for example to share a folder
    between runs.

    JAX cannot load a truncated entry and never rewrites it. Such entries are removed here, so that
    JAX writes them again.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        directory = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    else:
        jax.config.update("jax_compilation_cache_dir", str(directory))
        compilation_cache.reset_cache()  # jax checks for a directory only once
    show = warnings.showwarning

    def shown(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        found = re.match(_UNREADABLE, str(message))
        if not found:
            show(message, *args, **kwargs)
        elif is_first():  # only process 0 writes entries
            error = _remove_unreadable(directory, found[1])
            print(
                f"the compiled program {found[1]} in {directory} cannot be loaded ({found[2]}): "
                f"compiling it again{f'; cannot remove it: {error}' if error else ''}",
                file=sys.stderr,
            )

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=_UNREADABLE)
        warnings.showwarning = shown
        yield


def _remove_unreadable(directory: Path, program: str) -> str:
    """Remove the damaged entries of `program`, or all of them if none is known to be damaged.

    Return the error if an entry cannot be removed, else "".
    """
    error = ""
    entries = list(directory.glob(f"{glob.escape(program)}-*-cache"))
    for path in [path for path in entries if not _is_whole(path)] or entries:
        try:
            path.unlink(missing_ok=True)
        except OSError as e:  # a read-only folder, or another user's
            error = e.strerror or str(e)
    return error


def _is_whole(path: Path) -> bool:
    """Return whether an entry can be decompressed, which verifies zlib's checksum."""
    try:
        return bool(zlib.decompress(path.read_bytes()))
    except (zlib.error, OSError):
        return False
