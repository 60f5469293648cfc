"""Accelerators that a train step can be compiled for without one (`--dry_run --target`)."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax

from imagenet_jax.errors import UserError, check_choice


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A TPU chip or a GPU.

    Attributes:
      memory: bytes of HBM.
      bandwidth: bandwidth of HBM in bytes/s.
      dollars_per_hour: assumed price, for comparing recipes; --price overrides it. TPUs: Google's
        list price of a chip in US regions without a commitment,
        https://cloud.google.com/tpu/pricing, 2025. GPUs: within the usual range of GPU clouds, for
        example https://www.mercatus-ai.com/blog/cloud-gpu-pricing, May 2026. B200: a guess based on
        these.
      clock: clock rate in Hz of the matrix units of a TPU, whose cycles the compiler estimates. It
        follows from the peak rate: 4 or 8 units of 128^2 or 256^2 multiply-adds.
      gpu: description of a GPU for XLA.
    """

    memory: float
    bandwidth: float
    dollars_per_hour: float
    clock: float = 0.0
    gpu: str = ""


def _gpu(
    name: str, capability: int, cores: int, shared: int, l2: int, ghz: float, fpus: int
) -> str:
    """Return XLA's GpuTargetConfigProto as a text template; `shared` is in KiB per core.

    Memory size and bandwidth are %-placeholders.
    """
    return f"""
      gpu_device_info {{
        cuda_compute_capability {{ major: {capability} }}
        threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
        block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
        registers_per_core_limit: 65536 registers_per_block_limit: 65536
        shared_memory_per_block: 49152 shared_memory_per_core: {shared * 1024}
        shared_memory_per_block_optin: {(shared - 1) * 1024}
        core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {ghz} l2_cache_size: {l2}
        memory_bandwidth: %(bandwidth)d device_memory_size: %(memory)d
      }}
      platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }}
      device_description_str: "{name}"
    """


# Sources: https://cloud.google.com/tpu/docs/v5e and its siblings; NVIDIA's datasheets, and the
# specs in xla/backends/gpu/target_config of github.com/openxla/xla. Peak rates: logs/throughput.py.
ACCELERATORS = {
    "v4": Accelerator(32e9, 1228e9, 3.22, clock=1.05e9),
    "v5e": Accelerator(16e9, 819e9, 1.20, clock=1.5e9),
    "v5p": Accelerator(95e9, 2765e9, 4.20, clock=1.75e9),
    "v6e": Accelerator(32e9, 1640e9, 2.70, clock=1.75e9),
    "a100": Accelerator(85.1e9, 2039e9, 1.50,
        gpu=_gpu("NVIDIA A100-SXM4-80GB", 8, 108, 164, 41943040, 1.41, 64)),
    "h100": Accelerator(84.9e9, 3352e9, 3.00,
        gpu=_gpu("NVIDIA H100 80GB HBM3", 9, 132, 228, 52428800, 1.98, 128)),
    "h200": Accelerator(151.4e9, 4800e9, 4.00,
        gpu=_gpu("NVIDIA H200", 9, 132, 228, 52428800, 1.98, 128)),
    "b200": Accelerator(191.5e9, 7672e9, 5.00,
        gpu=_gpu("NVIDIA B200", 10, 148, 228, 132644864, 1.965, 128)),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Target:
    """Hardware to compile for, such as v5e:2x4 or h100:8.

    `devices` exist only in the compiler. On v4, a device is one of the two cores of a chip.
    """

    name: str
    accelerator: Accelerator
    chips: int
    devices: list[jax.Device]

    @property
    def share(self) -> float:
        """Fraction of a chip that a device is."""
        return self.chips / len(self.devices)

    @property
    def compiler_options(self) -> Any:
        """Options for `Lowered.compile`. They disable autotuning, which needs the hardware."""
        return {"xla_gpu_autotune_level": 0} if self.accelerator.gpu else None

    @property
    def memory(self) -> float:
        """Bytes of each device."""
        return self.accelerator.memory * self.share

    @property
    def bandwidth(self) -> float:
        """Bytes/s of each device."""
        return self.accelerator.bandwidth * self.share


def make_target(name: str) -> Target:
    """Return the hardware called `name`: an accelerator with topology or count, such as v5e:2x4.

    Raises UserError for an unknown name, or if the compiler for it is not installed.
    """
    kind, _, size = name.partition(":")
    check_choice("--target", kind, ACCELERATORS)
    accelerator = ACCELERATORS[kind]
    if accelerator.gpu:
        if not re.fullmatch(r"[1-9]\d*|", size):
            raise UserError(f"--target={name}: give the number of GPUs, such as {kind}:8")
        chips = int(size or 1)
        _require("jax_cuda12_plugin", "NVIDIA GPUs", "jax-cuda12-plugin jax-cuda12-pjrt")
    else:
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}|", size):
            raise UserError(f"--target={name}: give the topology in chips, such as {kind}:2x4")
        sides = [int(side) for side in (size or "1x1").split("x")]
        sides += [1] * (3 - len(sides))
        chips = sides[0] * sides[1] * sides[2]
        _require("libtpu", "TPUs", "'jax[tpu]'")
    # Otherwise JAX looks for devices of the installed compilers.
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    options: dict[str, Any]
    try:
        if accelerator.gpu:
            topology = kind
            options = {
                "platform": "cuda", "topology": f"1x1x{chips}",
                "target_config": accelerator.gpu % vars(accelerator),
            }  # fmt: skip
        else:
            # Otherwise libtpu looks for the metadata server of a TPU VM and complains.
            os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
            os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
            os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
            # Otherwise its lock, which protects devices, prevents concurrent compilations.
            os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
            flat = kind in ("v5e", "v6e")
            topology = f"{kind}:{'x'.join(map(str, sides[:2] if flat else sides))}"
            options = {"platform": "tpu"}
            if chips == 1:
                options["chips_per_host_bounds"] = (1, 1, 1)
        with quiet():
            found = topologies.get_topology_desc(topology, **options)
    except (RuntimeError, ValueError) as e:
        raise UserError(f"--target={name}: no such topology: {str(e).splitlines()[0]}") from e
    return Target(name, accelerator, chips, list(found.devices))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard what compilers write to standard error, bypassing sys.stderr."""
    saved = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _require(module: str, what: str, packages: str) -> None:
    if find_spec(module) is None:
        raise UserError(
            f"the compiler for {what} is not installed: pip install {packages} (version "
            f"{jax.__version__}, as jax; no accelerator is needed)"
        )
