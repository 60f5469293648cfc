"""How much memory a run holds: of its devices, and of this process."""

import resource
import sys

import jax


def used() -> dict[str, int]:
    """Bytes at most so far, asked without waiting for any step.

    Returns:
      device_memory of the first device of this process, where the device tells (a CPU does not);
      process_memory, resident, of this process.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # getrusage(2): KiB on Linux, bytes on macOS.
    process = {"process_memory": peak if sys.platform == "darwin" else 1024 * peak}
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" not in stats:
        return process
    return {"device_memory": stats["peak_bytes_in_use"]} | process


def limit() -> int | None:
    """Bytes that a program may use of a device; None where it does not tell."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
