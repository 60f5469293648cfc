"""Runs with several processes: connect them, decide on process 0, compare inputs, stop together.

`connect` starts a run with several processes. It takes the address of the coordinator, the number
of processes and the index of this process from the first of these that applies:

    --coordinator, --num_processes, --process_id     as given; --num_processes=1: no detection
    TPU VM or GKE with several hosts                  jax asks the metadata server or reads TPU_*
    SLURM, started by srun with several tasks         jax reads SLURM_*
    Kubernetes JobSet                                 JOBSET_COORDINATOR, JOBSET_PROCESSES and
                                                      JOB_COMPLETION_INDEX (launch/kubernetes/)
    anything else                                     one process
"""

import contextvars
import hashlib
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imagenet_jax.errors import UserError
from imagenet_jax.files import dump_json, parse_json

# jax's default is 100 s. If a process is killed, the others wait in a collective, on paid devices,
# until its heartbeat is missed.
HEARTBEAT_TIMEOUT_S = 30
# How long processes wait for each other. Image pulls and VM starts differ by minutes.
INITIALIZATION_TIMEOUT_S = 600
# Steps between two reductions of the stop signals. Each result is read at the next reduction.
_STOP_PERIOD = 4

_FLAGS = ("--coordinator", "--num_processes", "--process_id")
_JOBSET = ("JOBSET_COORDINATOR", "JOBSET_PROCESSES", "JOB_COMPLETION_INDEX")

# True while process 0 alone runs a function, and must not wait for the other processes.
_alone = contextvars.ContextVar("_alone", default=False)


class Connection(NamedTuple):
    """How a process connects to the others.

    Attributes:
      source: "flags", "TPU", "SLURM", "JobSet" or "one process".
      arguments: arguments for jax.distributed.initialize, which detects missing ones. None: do not
        call it.
    """

    source: str
    arguments: dict[str, Any] | None


_ONE_PROCESS = Connection("one process", None)


def connect(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> Connection:
    """Connect to the other processes, if any. Return the result of `plan_connection`.

    Call it before any device is used. Raises UserError like `plan_connection`, and if connecting
    fails. If not all processes connect within INITIALIZATION_TIMEOUT_S seconds, prints one line and
    exits with 1.
    """
    plan = plan_connection(os.environ, coordinator, num_processes, process_id)
    if plan.arguments is None:
        return plan
    # At its own timeout, jaxlib aborts the process with a stack dump. This timer fires earlier.
    timer = threading.Timer(INITIALIZATION_TIMEOUT_S, _give_up, [plan])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **plan.arguments,
            initialization_timeout=INITIALIZATION_TIMEOUT_S + 30,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
        )
    except (ValueError, OSError) as e:  # nothing detected, no metadata server, port in use
        raise UserError(
            f"{plan.source}: could not connect to the other processes: {e}; "
            "--num_processes=1 runs one process only"
        ) from e
    finally:
        timer.cancel()
    return plan


def _give_up(plan: Connection) -> None:
    where = (plan.arguments or {}).get("coordinator_address", "the coordinator")
    print(
        f"error: {plan.source}: not all processes connected to {where} within "
        f"{INITIALIZATION_TIMEOUT_S} s; check that each one was started and that the port is open "
        "between the hosts. --num_processes=1 runs one process only",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)  # no exception reaches the main thread, which waits in jaxlib


def plan_connection(
    environment: Mapping[str, str],
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Connection:
    """Return how to connect, given the environment variables and the flags (None: not given).

    Raises UserError for incomplete or contradictory flags or variables, and for a process that has
    several SLURM nodes but was not started by srun, so that the other nodes would be idle.
    """
    flags = (coordinator, num_processes, process_id)
    if flags in ((None, 1, None), (None, 1, 0)):
        return Connection("flags", None)
    if flags != (None, None, None):
        hint = "--coordinator=HOST:PORT, --num_processes=N and --process_id=I go together"
        return _connect_to("flags", _FLAGS, flags, f"not given: {hint}")
    if _is_on_tpu_pod(environment):
        return Connection("TPU", {})
    if "SLURM_JOB_ID" in environment:
        return _read_slurm(environment)
    if "JOBSET_COORDINATOR" in environment:
        values = [environment.get(name) or None for name in _JOBSET]
        hint = (
            "not set; launch/kubernetes/jobset.yaml sets JOBSET_COORDINATOR and JOBSET_PROCESSES, "
            "an Indexed job JOB_COMPLETION_INDEX"
        )
        plan = _connect_to("JobSet", _JOBSET, values, hint)
        return plan if values[1] != "1" else _ONE_PROCESS
    return _ONE_PROCESS


def _connect_to(
    source: str, names: Sequence[str], values: Sequence[str | int | None], hint: str
) -> Connection:
    """Return the connection for `values`: coordinator, number of processes, index of this one.

    Error messages use `names`, the names of the values, and `hint`, why one may be missing.
    """
    if missing := [name for name, value in zip(names, values, strict=True) if value is None]:
        raise UserError(f"{' and '.join(missing)} {hint}")
    address = str(values[0])
    try:
        count, index = (int(value) for value in values[1:] if value is not None)
    except ValueError:
        raise UserError(
            f"{names[1]}={values[1]!r} and {names[2]}={values[2]!r} must be whole numbers"
        ) from None
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"{names[0]}={address} is not HOST:PORT, for example 10.0.0.1:8476")
    if not 0 <= index < count:
        raise UserError(f"{names[2]}={index} is not in 0..{count - 1} ({names[1]}={count})")
    arguments = {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }
    return Connection(source, arguments)


def _read_slurm(environment: Mapping[str, str]) -> Connection:
    if "SLURM_STEP_NODELIST" not in environment:  # the batch script, not srun
        if int(environment.get("SLURM_JOB_NUM_NODES", 1)) > 1:
            raise UserError(
                f"SLURM gave this job {environment['SLURM_JOB_NUM_NODES']} nodes but this process "
                "was not started by srun: start it with srun (see launch/slurm.sbatch), or give "
                "--num_processes=1"
            )
        return _ONE_PROCESS
    if int(environment.get("SLURM_NTASKS", 1)) == 1:
        return _ONE_PROCESS
    # By default, jax gives each task the GPU with its local index. That is right for one task per
    # GPU if every task sees all GPUs of the node. Otherwise, a task should use all GPUs that SLURM
    # makes visible, which jax does for an empty list.
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "1(x1)")
    sees_one = "," not in environment.get("CUDA_VISIBLE_DEVICES", ",")
    all_visible = sees_one or re.fullmatch(r"1(\(x\d+\))?", tasks)
    return Connection("SLURM", {"local_device_ids": []} if all_visible else {})


def _is_on_tpu_pod(environment: Mapping[str, str]) -> bool:
    if environment.get("TPU_ML_PLATFORM") != "JAX":  # set by `import jax` on TPU hosts
        return False
    if hosts := environment.get("TPU_WORKER_HOSTNAMES"):  # GKE; "localhost" on hosted notebooks
        return "," in hosts or int(environment.get("MEGASCALE_NUM_SLICES", 1)) > 1
    return "TPU_SKIP_MDS_QUERY" not in environment


def count() -> int:
    """Return the number of processes, without initializing devices if there is only one."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Return whether this is process 0, the one that writes."""
    return count() == 1 or jax.process_index() == 0


def run_on_first(function: Callable[[], Any]) -> Any:
    """Call `function` on process 0 only and return its result, a JSON value, in every process.

    If it raises an exception there, every process fails. Every process must make the call. Calls
    within `function` run directly.

    Every decision based on files uses this function, because a workdir may look different on each
    host: listings are cached, files change in the meantime, or a directory is not shared. Such
    decisions depend on the lock, config.json, provenance.json, classes.json, rewinds.json, which
    checkpoints exist and are intact, the step and data position to continue from, and the steps
    that `eval --follow` evaluates. What each process reads itself (data, config, code, weights
    files) is compared by `require_same`.
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
    padded = _pad(text, 1 << max(size - 1, 63).bit_length())  # compiled for each length
    return parse_json(multihost_utils.broadcast_one_to_all(padded)[:size].tobytes())


def require_same(values: Mapping[str, Any]) -> None:
    """Raise UserError, naming it, if an entry of `values` differs between processes.

    The values must be JSON values.
    """
    if count() == 1:
        return
    texts = [dump_json(value, sort_keys=True).encode() for value in values.values()]
    digests = np.stack([np.frombuffer(hashlib.sha256(text).digest(), np.uint8) for text in texts])
    gathered = multihost_utils.process_allgather(digests)  # u8[processes, entries, 32]
    for i, name in enumerate(values):
        differ = np.flatnonzero((gathered[:, i] != gathered[0, i]).any(axis=-1))
        if len(differ):
            raise UserError(
                f"{name} of process {differ[0]} differs from that of process 0: every process "
                "needs the same command, code and data"
            )


def gather_names(names: list[str]) -> list[str]:
    """Return the names of all processes, in process order. Every process must call it."""
    if count() == 1:
        return names
    text = dump_json(names).encode()
    lengths = np.ravel(multihost_utils.process_allgather(np.int32(len(text))))
    every = multihost_utils.process_allgather(_pad(text, lengths.max()))
    texts = (row[:n].tobytes() for row, n in zip(every, lengths, strict=True))
    return [name for text in texts for name in parse_json(text)]


def _pad(text: bytes, length: int) -> np.ndarray:
    return np.frombuffer(text.ljust(length, b"\0"), np.uint8)


class StopAgreement:
    """Makes all processes stop at the same step when one of them has received a signal.

    The signals are reduced on the devices while training continues. The result is read a few steps
    later.
    """

    def __init__(self, mesh: Mesh):
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        replicated = NamedSharding(mesh, PartitionSpec())
        self._largest = jax.jit(jnp.max, out_shardings=replicated)
        self._pending: deque[jax.Array] = deque()

    def __call__(self, step: int, received: int | None) -> int | None:
        """Return the number of the signal that was agreed on, or None.

        Every process must call it at every step. `received` is the signal of this process, if any.
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
