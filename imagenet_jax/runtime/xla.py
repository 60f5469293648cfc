"""XLA options of the programs that this package compiles, and where they are kept."""

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

# What jax warns of: the program, and why.
_UNREADABLE = r"Error reading persistent compilation cache entry for '([^']*)': (.*)"


def options(*, optimize: bool = True) -> dict[str, str | int] | None:
    """For `jax.jit(compiler_options=...)`; None on accelerators, where XLA's defaults stand.

    Args:
      optimize: False for a program that runs once: compiling it is all that it costs.
    """
    if jax.default_backend() != "cpu":
        return None
    # jaxlib 0.12.0 on the CPU reads memory that was never written in the fusions it hands to
    # YNNPACK: bfloat16 networks come out as NaN (tests/models/test_bfloat16.py).
    chosen: dict[str, str | int] = {"xla_cpu_experimental_ynn_fusion_type": ""}
    return chosen if optimize else chosen | {"xla_backend_optimization_level": 0}


@contextlib.contextmanager
def keep_programs(directory: Path) -> Iterator[None]:
    """Keep what is compiled inside in `directory`, so that a restart loads it.

    JAX_COMPILATION_CACHE_DIR, where it is set, names another place, such as one for all runs.

    JAX cannot load a truncated entry and never rewrites it. Here that file is removed in between,
    so that jax writes a whole one.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        directory = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    else:
        jax.config.update("jax_compilation_cache_dir", str(directory))
        compilation_cache.reset_cache()  # jax asks once whether there is one, when it compiles
    show = warnings.showwarning

    def shown(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        found = re.match(_UNREADABLE, str(message))
        if not found:
            show(message, *args, **kwargs)
        elif is_first():  # which is the one that writes them
            stays = _remove_unreadable(directory, found[1])
            print(
                f"the compiled program {found[1]} in {directory} does not load ({found[2]}): "
                f"compiling it again{f'; it stays there: {stays}' if stays else ''}",
                file=sys.stderr,
            )

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=_UNREADABLE)
        warnings.showwarning = shown
        yield


def _remove_unreadable(directory: Path, program: str) -> str:
    """Remove the entries of `program` that are not whole; all of them if that cannot be checked.

    Returns why one of them cannot be removed, "" where all were.
    """
    stays = ""
    entries = list(directory.glob(f"{glob.escape(program)}-*-cache"))
    for path in [path for path in entries if not _is_whole(path)] or entries:
        try:
            path.unlink(missing_ok=True)
        except OSError as e:  # a folder of other users, or a read-only one
            stays = e.strerror or str(e)
    return stays


def _is_whole(path: Path) -> bool:
    """Whether an entry is what was compressed with zlib, which has a checksum."""
    try:
        return bool(zlib.decompress(path.read_bytes()))
    except (zlib.error, OSError):
        return False
