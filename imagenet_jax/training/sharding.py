"""The device mesh and the shardings of batches and state."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from imagenet_jax.config.rules import use_multiple
from imagenet_jax.errors import UserError

DATA, FSDP = "data", "fsdp"
AHEAD = 2  # batches that are transferred to the devices ahead of their use


def make_mesh(fsdp: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """Return a (data, fsdp) mesh. Each group of `fsdp` devices shards one copy of the state.

    Raises UserError if `fsdp` does not divide the number of devices.
    """
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
    """Raise UserError unless each of `parts` micro-batches divides equally among the devices.

    Batch sizes that the message suggests are also divisible into batch-norm groups of `group` rows.
    """
    if batch_size % (mesh.size * parts):
        unit = _unit(mesh.size, parts, group)
        by = f"config.optim.grad_accum_steps = {parts} times the " if parts > 1 else "the "
        raise UserError(
            f"config.{field} = {batch_size} is not divisible by {by}{mesh.size} devices; "
            f"{use_multiple(field, batch_size, unit)}"
        )


def check_train_batch(config: ConfigDict, mesh: Mesh) -> None:
    """Raise UserError unless config.batch_size is divisible into micro-batches and by devices."""
    parts = config.optim.grad_accum_steps
    check_batch_size("batch_size", config.batch_size, mesh, parts, _group(config))


def round_batch_size(config: ConfigDict, batch_size: float, devices: int) -> int:
    """Return the largest valid batch size up to `batch_size`, or else the smallest valid one."""
    unit = _unit(devices, config.optim.grad_accum_steps, _group(config))
    return max(1, int(batch_size // unit)) * unit


def _group(config: ConfigDict) -> int:
    return config.model.get("bn_group", 0) or 1


def _unit(devices: int, parts: int, group: int) -> int:
    """Return the smallest batch that divides into micro-batches, devices and batch-norm groups."""
    return math.lcm(devices, group) * parts


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits the rows of a batch over all devices."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that copies an array to every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(state: Any, mesh: Mesh) -> Any:
    """Return a sharding for each leaf: split the largest axis that is divisible by `fsdp`, if any.

    Momentum and EMA weights are sharded like their parameters, because they have the same shapes.
    """
    fsdp = mesh.shape[FSDP]

    def spec(leaf: Any) -> NamedSharding:
        divisible = [axis for axis, size in enumerate(leaf.shape) if size % fsdp == 0]
        if fsdp == 1 or not divisible:
            return replicated(mesh)
        split = max(divisible, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * split, FSDP))

    return jax.tree.map(spec, state)


def get_shardings(tree: Any) -> Any:
    """Return the sharding of each leaf."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def prefetch_to_device(batches: Iterable[dict[str, Any]], mesh: Mesh) -> Iterator[dict[str, Any]]:
    """Yield batches as global arrays, and keep AHEAD of them in transfer.

    `batches` has the rows of this process. Values that are not arrays, such as the names of skipped
    images, are passed through.
    """
    sharding = batch_sharding(mesh)

    def put(value: Any) -> Any:
        is_array = isinstance(value, np.ndarray)
        return jax.make_array_from_process_local_data(sharding, value) if is_array else value

    queue: list[dict[str, Any]] = []
    for batch in batches:
        queue.append({name: put(value) for name, value in batch.items()})
        if len(queue) > AHEAD:
            yield queue.pop(0)
    yield from queue
