"""Speed and memory of training: images and FLOP per second, input wait, and peak memory."""

import re
import resource
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from ml_collections import ConfigDict

from imagenet_jax.models.operations import count_multiply_adds

# Values of the train split that depend on the machine, and differ between otherwise equal runs.
MEASURED = (
    "images_per_second", "input_wait", "flops_per_second", "peak_share", "device_memory",
    "process_memory", "seconds", "time",
)  # fmt: skip

# Steps in flight before the loop waits for the oldest: enough to keep the devices busy, but few
# enough that their batches do not fill the memory.
_IN_FLIGHT = 3

# Peak of bfloat16 matrix products in TFLOP/s: dense (no structured sparsity), summed in float32.
# The pattern must match the whole `device_kind`, so that a slice of a GPU (MIG) or a variant that
# is not listed gets no peak instead of a wrong one.
_TFLOPS = {
    # NVIDIA H100 datasheet (1979, 1513 and 1671 with sparsity); H200 datasheet (1979 and 1671).
    r"NVIDIA H100 80GB HBM3": 989.5,
    r"NVIDIA H100 PCIe": 756.5,
    r"NVIDIA H100 NVL": 835.5,
    r"NVIDIA H200": 989.5,
    r"NVIDIA H200 NVL": 835.5,
    # NVIDIA DGX B200 datasheet (72 PFLOP/s of eight in FP8, which is twice bfloat16).
    r"NVIDIA B200": 2250.0,
    # NVIDIA A100 datasheet.
    r"NVIDIA A100-(SXM4|PCIE)-(40|80)GB|NVIDIA A100 80GB PCIe": 312.0,
    # NVIDIA V100 datasheet; float16 products, because it has no bfloat16.
    r"Tesla V100-SXM[23]-(16|32)GB": 125.0,
    r"Tesla V100-PCIE-(16|32)GB": 112.0,
    # NVIDIA T4 datasheet; float16 products.
    r"Tesla T4": 65.0,
    # NVIDIA L4 datasheet (242 with sparsity), L40S datasheet.
    r"NVIDIA L4": 121.0,
    r"NVIDIA L40S": 362.05,
    # NVIDIA's architecture whitepapers: Ampere GA102 and Ada.
    r"NVIDIA GeForce RTX 3090": 71.0,
    r"NVIDIA GeForce RTX 4090": 165.2,
    r"NVIDIA RTX A6000": 154.8,
    # https://cloud.google.com/tpu/docs/v3 and similar pages, per chip. A device of v2 and v3 is a
    # core, which is half a chip.
    r"TPU v2": 45.0 / 2,
    r"TPU v3": 123.0 / 2,
    r"TPU v4": 275.0,
    r"TPU (v5 lite|v5e)": 197.0,
    r"TPU (v5|v5p)": 459.0,
    r"TPU (v6 lite|v6e)": 918.0,
}


class Throughput:
    """The speed of training, measured between completed steps.

    The time to dispatch a step is meaningless, because several steps are always in flight. Instead,
    the clock runs from one completed step to the next while the devices are busy. It stops when
    they become idle (at the start, a compilation, an evaluation or a checkpoint), and starts again
    when the next step is done.
    """

    def __init__(self, batch_size: int, peak: float | None = None):
        """`peak` is the peak FLOP/s of all devices together; None: unknown."""
        self._batch_size, self._peak = batch_size, peak
        self._in_flight: deque[tuple[jax.Array, float]] = deque()
        self._last: float | None = None  # when the last step was done; None: the clock is stopped
        self._waiting = 0.0  # for input, since the last step was done
        self._reset()

    def _reset(self) -> None:
        self._steps, self._elapsed, self._waited, self._flops = 0, 0.0, 0.0, 0.0

    def dispatched(self, loss: jax.Array, flops: float) -> None:
        """Add a step with `flops` operations to those in flight. `loss` is its result."""
        self._in_flight.append((loss, flops))

    def wait_for_oldest(self, *, timed: bool = True) -> None:
        """If too many steps are in flight, wait for the oldest, and count it if `timed`."""
        if len(self._in_flight) > _IN_FLIGHT:
            oldest, operations = self._in_flight.popleft()
            oldest.block_until_ready()
            if timed:
                self.done(operations)

    def drain(self) -> None:
        """Wait for all steps in flight and stop the clock, because other work follows."""
        jax.block_until_ready([loss for loss, _ in self._in_flight])
        self._in_flight.clear()
        self.stop_clock()

    def done(self, flops: float = 0.0) -> None:
        """Count one more completed step with `flops` operations; 0: unknown."""
        now = time.perf_counter()
        if self._last is not None:
            self._steps += 1
            self._elapsed += now - self._last
            self._waited += self._waiting
            self._flops += flops
        self._last, self._waiting = now, 0.0

    def stop_clock(self) -> None:
        """Do not count the time until the next step is done, because the devices are idle."""
        self._last = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in this block as waiting for input."""
        before = time.perf_counter()
        yield
        self._waiting += time.perf_counter() - before

    def rate(self) -> float | None:
        """Return the images per second since the last lap, or None before two steps are done."""
        return self._steps * self._batch_size / self._elapsed if self._elapsed else None

    def lap(self) -> dict[str, float]:
        """Return the speed since the last lap, or {} if it is unknown.

        Returns:
          images_per_second and input_wait (fraction of time); flops_per_second of all devices if
          the operations are known; peak_share, the fraction of `peak`, if that is known.
        """
        values = {}
        if rate := self.rate():
            values = {"images_per_second": rate, "input_wait": self._waited / self._elapsed}
            if self._flops:
                values["flops_per_second"] = self._flops / self._elapsed
                if self._peak:
                    values["peak_share"] = self._flops / self._elapsed / self._peak
        self._reset()
        return values


def peak_flops(device_kind: str) -> float | None:
    """Return the peak FLOP/s of a device (a multiply-add is two), or None if it is not listed."""
    for pattern, tera in _TFLOPS.items():
        if re.fullmatch(pattern, device_kind):
            return tera * 1e12
    return None


def count_flops(config: ConfigDict, shape: tuple[int, ...]) -> float:
    """Return the FLOP of a train step on images of `shape` [B, H, W, 3], over all devices.

    They are twice the multiply-adds of `count_multiply_adds`.
    """
    return 2.0 * shape[0] * count_multiply_adds(config.model, shape[1], train=True)


def peak_memory() -> dict[str, int]:
    """Return the peak memory so far in bytes, without waiting for any step.

    Returns:
      device_memory: of the first device of this process, if it is reported (a CPU does not).
      process_memory: resident memory of this process.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # getrusage(2): KiB on Linux, bytes on macOS.
    process = {"process_memory": peak if sys.platform == "darwin" else 1024 * peak}
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" not in stats:
        return process
    return {"device_memory": stats["peak_bytes_in_use"]} | process


def memory_limit() -> int | None:
    """Return the bytes that a program may use on a device, or None if it is not reported."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
