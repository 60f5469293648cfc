"""Agreement between the processes of a run: decisions of process 0, equal inputs, when to stop."""

import contextvars
import hashlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imagenet_jax.errors import UserError
from imagenet_jax.files import dump_json, parse_json

# Steps between two reductions of the stop signals, and the steps until one's result is read.
_STOP_PERIOD = 4

# True while process 0 runs a function that the others do not: it must not wait for them.
_alone = contextvars.ContextVar("_alone", default=False)


def count() -> int:
    """Return the number of processes, without initializing devices if there is only this one."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Return whether this is process 0, the one that writes."""
    return count() == 1 or jax.process_index() == 0


def run_on_first(function: Callable[[], Any]) -> Any:
    """Call `function` on process 0 only and return its result, a JSON value, in every process.

    If it raises there, every process fails. Every process must make the call. Within `function`,
    such calls run directly.

    Every decision based on files goes through this function, because a workdir may look different
    on each host: listings are cached, files change in between, or a directory is not shared. These
    are the lock, the checks of config.json and provenance.json, classes.json, rewinds.json, which
    checkpoints exist and are intact, the step and data position to continue from, and the steps
    that an evaluation follows. What each process reads itself (data, config, code, weights files)
    is compared by `require_same`.
    """
    if count() == 1 or _alone.get():
        return function()
    error: BaseException | None = None
    text = b""
    if is_first():
        token = _alone.set(True)
        try:
            text = dump_json(function()).encode()
        except BaseException as e:  # raised again after the other processes know
            error = e
        finally:
            _alone.reset(token)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if error else len(text))))
    if error is not None:
        raise error
    if size < 0:
        raise UserError("process 0 failed; see its error message")
    # Padded to a power of two: a program is compiled for each length.
    padded = np.zeros(1 << max(size - 1, 63).bit_length(), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    return parse_json(multihost_utils.broadcast_one_to_all(padded)[:size].tobytes())


def require_same(values: Mapping[str, Any]) -> None:
    """Raise a UserError that names the first entry of `values` that differs between processes.

    The values are JSON values.
    """
    if count() == 1:
        return
    digests = np.stack([_digest(dump_json(value, sort_keys=True)) for value in values.values()])
    gathered = multihost_utils.process_allgather(digests)  # u8[processes, entries, 32]
    for i, name in enumerate(values):
        differ = np.flatnonzero((gathered[:, i] != gathered[0, i]).any(axis=-1))
        if len(differ):
            raise UserError(
                f"{name} of process {differ[0]} is not that of process 0: every process needs the "
                "same command, code and data"
            )


def _digest(text: str) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)


def gather_names(names: list[str]) -> list[str]:
    """Return the names of all processes, in process order. Every process must call it."""
    if count() == 1:
        return names
    mine = np.frombuffer(dump_json(names).encode(), np.uint8)
    lengths = np.ravel(multihost_utils.process_allgather(np.int32(len(mine))))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(mine)] = mine
    every = multihost_utils.process_allgather(padded)
    texts = (row[:n].tobytes().decode() for row, n in zip(every, lengths, strict=True))
    return [name for text in texts for name in parse_json(text)]


class StopAgreement:
    """Lets all processes stop at the same step for a signal that any of them received.

    The signals are reduced on the devices while training continues; the result is read some steps
    later.
    """

    def __init__(self, mesh: Mesh):
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        replicated = NamedSharding(mesh, PartitionSpec())
        self._largest = jax.jit(jnp.max, out_shardings=replicated)
        self._pending: deque[jax.Array] = deque()

    def __call__(self, step: int, received: int | None) -> int | None:
        """Return the number of the agreed signal, or None. Every process calls it at every step.

        `received` is the signal of this process.
        """
        if count() == 1:
            return received
        if step % _STOP_PERIOD:
            return None
        mine = np.full(jax.local_device_count(), received or 0, np.int32)
        signals = jax.make_array_from_process_local_data(self._sharding, mine)
        self._pending.append(self._largest(signals))
        if len(self._pending) < 2:
            return None
        return int(self._pending.popleft()) or None
