"""XLA options of the programs that this package compiles."""

import jax


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
