"""What the processes of a run have to agree on: one workdir, one config, one moment to stop."""

import contextvars
import hashlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from imagenet_jax import strict_json
from imagenet_jax.errors import UserError
from imagenet_jax.runtime.sharding import batch_sharding, replicated

_EVERY = 4  # steps from one question to the next; the answer is used that many steps later

# Set while process 0 decides, which the others do not: what it calls must not wait for them.
_deciding = contextvars.ContextVar("_deciding", default=False)


def count() -> int:
    """Return the number of processes; devices are left alone if this one has joined no others."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes: True in exactly one process."""
    return count() == 1 or jax.process_index() == 0


def from_first(decide: Callable[[], Any]) -> Any:
    """Return in every process what `decide` returns on process 0: any value that JSON can hold.

    If `decide` fails there, all fail. Every process must call it. Nested calls run `decide`
    directly.

    Every decision that is read from files goes through here, for a workdir may look different on
    each host: listings are cached, files change in between, and one of them may not be shared.
      training      has_checkpoint (whether initial weights are read), the lock, the check of
                    config.json and provenance.json, set_aside_damaged, torn compiled programs, the
                    step and the position in the data that it continues from, rewinds.json, whether
                    a step is saved already, and whether it was saved at all
      evaluation    config.json, classes.json, "latest", "best" and --follow's next step and end,
                    whether a checkpoint is damaged, unverified or removed
    What each process reads by itself (data, config, code, weights files) `require_same` compares.
    """
    if count() == 1 or _deciding.get():
        return decide()
    error: BaseException | None = None
    text = b""
    if is_first():
        within = _deciding.set(True)
        try:
            text = strict_json.dumps(decide()).encode()
        except BaseException as e:  # told to the others first, then raised again
            error = e
        finally:
            _deciding.reset(within)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if error else len(text))))
    if error is not None:
        raise error
    if size < 0:
        raise UserError("process 0 gave up; its own message says why")
    # Of few lengths, for a program is compiled for each.
    padded = np.zeros(1 << max(size - 1, 63).bit_length(), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    return strict_json.loads(multihost_utils.broadcast_one_to_all(padded)[:size].tobytes())


def on_first(action: Callable[[], None]) -> None:
    """Run `action` on process 0 while the others wait; if it fails there, all fail."""
    from_first(action)


def require_same(what: Mapping[str, Any]) -> None:
    """UserError naming the first entry of `what` that is not the same in every process.

    Values are anything that JSON can hold.
    """
    if count() == 1:
        return
    digests = np.stack(
        [_digest(strict_json.dumps(value, sort_keys=True)) for value in what.values()]
    )
    gathered = multihost_utils.process_allgather(digests)  # [processes, entries, bytes]
    for i, name in enumerate(what):
        differ = np.flatnonzero((gathered[:, i] != gathered[0, i]).any(axis=-1))
        if len(differ):
            raise UserError(
                f"{name} of process {differ[0]} is not that of process 0: every process needs the "
                "same command, code and data"
            )


def _digest(text: str) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)


def gather_names(names: list[str]) -> list[str]:
    """The names of all processes, in the order of processes; every process must call it."""
    if count() == 1:
        return names
    mine = np.frombuffer(strict_json.dumps(names).encode(), np.uint8)
    lengths = np.ravel(multihost_utils.process_allgather(np.int32(len(mine))))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(mine)] = mine
    every = multihost_utils.process_allgather(padded)
    texts = (row[:n].tobytes().decode() for row, n in zip(every, lengths, strict=True))
    return [name for text in texts for name in strict_json.loads(text)]


class StopAgreement:
    """The signal to stop by, at the same step in every process although one alone received it.

    Asking is a reduction on the devices that nobody waits for; its answer is read some steps later.
    """

    def __init__(self, mesh: Mesh):
        self._sharding = batch_sharding(mesh)
        self._largest = jax.jit(jnp.max, out_shardings=replicated(mesh))
        self._asked: deque[jax.Array] = deque()

    def __call__(self, step: int, received: int | None) -> int | None:
        """The agreed signal's number, or None; `received` is this process's. Call at every step."""
        if count() == 1:
            return received
        if step % _EVERY:
            return None
        mine = np.full(jax.local_device_count(), received or 0, np.int32)
        flags = jax.make_array_from_process_local_data(self._sharding, mine)
        self._asked.append(self._largest(flags))
        if len(self._asked) < 2:
            return None
        return int(self._asked.popleft()) or None
