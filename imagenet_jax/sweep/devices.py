"""Disjoint shares of this machine for processes that train side by side."""

import os
import subprocess
import sys
from dataclasses import dataclass, field

from imagenet_jax.errors import UserError

# In a process of its own: one that has opened the devices would keep their memory.
_ASK = "import jax; print(jax.default_backend(), jax.local_device_count())"


@dataclass(frozen=True)
class Share:
    """What one process may use: environment variables, and cores (none: all)."""

    environment: dict[str, str] = field(default_factory=dict)
    cores: frozenset[int] = frozenset()


def shares(jobs: int) -> list[Share]:
    """`jobs` disjoint shares: whole GPUs, or cores of a CPU; one job has everything.

    Raises UserError where there are fewer devices than jobs, or TPUs: one process has them.
    """
    if jobs < 1:
        raise UserError(f"--jobs={jobs}: at least 1")
    if jobs == 1:
        return [Share()]
    backend, count = _devices()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    core_shares = [frozenset(cores[i::jobs]) for i in range(jobs)]
    if backend == "cpu":
        if cores and len(cores) < jobs:
            raise UserError(f"--jobs={jobs} needs a core each, and there are {len(cores)}")
        return [Share(cores=mine) for mine in core_shares]
    if backend != "gpu":
        raise UserError(f"--jobs={jobs}: one process takes all {backend} devices; use --jobs=1")
    if count < jobs:
        raise UserError(f"--jobs={jobs} needs a GPU each, and there are {count}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",")[:count] if visible else [str(i) for i in range(count)]
    each = count // jobs  # the same number for each, so that their batches are divided alike
    return [
        Share({"CUDA_VISIBLE_DEVICES": ",".join(names[i * each : (i + 1) * each])}, mine)
        for i, mine in enumerate(core_shares)
    ]


def _devices() -> tuple[str, int]:
    """("cpu" | "gpu" | "tpu", number) as jax sees them."""
    done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True)
    words = done.stdout.split()
    if done.returncode or len(words) < 2:
        lines = done.stderr.strip().splitlines()
        raise UserError(f"jax finds no devices: {lines[-1] if lines else 'no reason given'}")
    return words[-2], int(words[-1])
