"""The device mesh, and which part of each array lives where."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from imagenet_jax.config.rules import use_multiple
from imagenet_jax.errors import UserError

DATA, FSDP = "data", "fsdp"
AHEAD = 2  # batches on their way to the devices


def make_mesh(fsdp: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """All devices as a (data, fsdp) grid: each group of `fsdp` shares one copy of the state."""
    devices = devices or jax.devices()
    if len(devices) % fsdp:
        sizes = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise UserError(
            f"config.mesh.fsdp = {fsdp} does not divide the {len(devices)} devices; use "
            f"{', '.join(map(str, sizes))}"
        )
    grid = np.asarray(devices).reshape(len(devices) // fsdp, fsdp)
    return Mesh(grid, (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto))


def check_batch_size(
    field: str, batch_size: int, mesh: Mesh, parts: int = 1, group: int = 1
) -> None:
    """Raise UserError unless each of `parts` micro-batches has as many rows for each device.

    The size that the message proposes has micro-batches of whole groups of `group` rows too.
    """
    if batch_size % (mesh.size * parts):
        unit = math.lcm(mesh.size, group) * parts
        by = f"config.optim.grad_accum_steps = {parts} times the " if parts > 1 else "the "
        raise UserError(
            f"config.{field} = {batch_size} is not divisible by {by}{mesh.size} devices; "
            f"{use_multiple(field, batch_size, unit)}"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows spread over every device, those that share parameters included."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(state: Any, mesh: Mesh) -> Any:
    """A sharding for each leaf: its largest axis that `fsdp` divides is split, or none is.

    Momentum and averages have the shapes of their parameters and so land beside them.
    """
    fsdp = mesh.shape[FSDP]

    def spec(leaf: Any) -> NamedSharding:
        divisible = [axis for axis, size in enumerate(leaf.shape) if size % fsdp == 0]
        if fsdp == 1 or not divisible:
            return replicated(mesh)
        split = max(divisible, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * split, FSDP))

    return jax.tree.map(spec, state)


def prefetch_to_device(
    batches: Iterable[dict[str, Any]], mesh: Mesh, ahead: int = AHEAD
) -> Iterator[dict[str, Any]]:
    """Each process's rows as global arrays, `ahead` batches under way to the devices.

    What is no array, the names of skipped images, passes as it is.
    """
    sharding = batch_sharding(mesh)

    def place(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        return jax.make_array_from_process_local_data(sharding, value)

    queue: list[dict[str, Any]] = []
    for batch in batches:
        queue.append({name: place(value) for name, value in batch.items()})
        if len(queue) > ahead:
            yield queue.pop(0)
    yield from queue
