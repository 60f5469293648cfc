"""XLA options of the programs that this package compiles, and where they are kept."""

import os
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache


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


def keep_programs(directory: Path) -> None:
    """Keep what is compiled from here on in `directory`, so that a restart loads it.

    JAX_COMPILATION_CACHE_DIR, where it is set, names another place, such as one for all runs.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    compilation_cache.reset_cache()  # jax asks once whether there is one, at its first compilation
