"""Start-up of a run of several processes: coordinator, number of processes, index of this one.

`plan` takes them from the flags or from the scheduler's environment variables; `start` passes them
to `jax.distributed.initialize`, before any device is used. The first match counts:

    --coordinator, --num_processes, --process_id     as given; --num_processes=1: no detection
    TPU VM or GKE with several hosts                  jax asks the metadata server or reads TPU_*
    SLURM, started by srun with several tasks         jax reads SLURM_*
    Kubernetes JobSet                                 JOBSET_COORDINATOR, JOBSET_PROCESSES and
                                                      JOB_COMPLETION_INDEX (launch/kubernetes/)
    anything else                                     one process
"""

import os
import re
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imagenet_jax.errors import UserError

# jax's default is 100 s. If a process is killed, the others wait in a collective, on paid devices,
# until its heartbeat is missed.
HEARTBEAT_TIMEOUT_S = 30
# How long processes wait for each other: image pulls and VM starts differ by minutes.
INITIALIZATION_TIMEOUT_S = 600

_JOBSET = ("JOBSET_COORDINATOR", "JOBSET_PROCESSES", "JOB_COMPLETION_INDEX")


@dataclass(frozen=True)
class Start:
    """How to start.

    Attributes:
      source: "flags", "TPU", "SLURM", "JobSet" or "one process".
      arguments: of jax.distributed.initialize, which detects missing ones itself. None: do not
        call it.
    """

    source: str
    arguments: dict[str, Any] | None


_ONE_PROCESS = Start("one process", None)


def plan(
    environment: Mapping[str, str],
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Start:
    """Return how to start, given the environment variables and the flags (None: not given).

    `import jax` must come first: it sets the variables that say whether this is a TPU VM.

    Raises UserError for incomplete or contradictory flags or variables, and for a SLURM job of
    several nodes that was not started by srun, as the other nodes would be idle.
    """
    if (coordinator, num_processes, process_id) != (None, None, None):
        return _from_flags(coordinator, num_processes, process_id)
    if _on_tpu_pod(environment):
        return Start("TPU", {})
    if "SLURM_JOB_ID" in environment:
        return _from_slurm(environment)
    if "JOBSET_COORDINATOR" in environment:
        return _from_jobset(environment)
    return _ONE_PROCESS


def start(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> Start:
    """Connect to the other processes, if any; return the result of `plan`.

    Raises UserError as `plan` does, and if connecting fails. If not all processes connect within
    INITIALIZATION_TIMEOUT_S seconds, prints one line and exits with 1.
    """
    import jax

    decided = plan(os.environ, coordinator, num_processes, process_id)
    if decided.arguments is None:
        return decided
    # At its own timeout jaxlib aborts the process with a stack dump; this timer fires earlier.
    timer = threading.Timer(INITIALIZATION_TIMEOUT_S, _give_up, [decided])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **decided.arguments,
            initialization_timeout=INITIALIZATION_TIMEOUT_S + 30,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
        )
    except (ValueError, OSError) as e:  # nothing detected, no metadata server, port in use
        raise UserError(
            f"{decided.source}: could not connect to the other processes: {e}; "
            "--num_processes=1 runs one process only"
        ) from e
    finally:
        timer.cancel()
    return decided


def _give_up(decided: Start) -> None:
    where = (decided.arguments or {}).get("coordinator_address", "the coordinator")
    print(
        f"error: {decided.source}: not all processes connected to {where} within "
        f"{INITIALIZATION_TIMEOUT_S} s; check that each one was started and that the port is open "
        "between the hosts. --num_processes=1 runs one process only",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)  # no exception reaches the main thread, which waits in jaxlib


def _from_flags(coordinator: str | None, count: int | None, index: int | None) -> Start:
    if count == 1 and coordinator is None and index in (None, 0):
        return Start("flags", None)
    given = {"--coordinator": coordinator, "--num_processes": count, "--process_id": index}
    missing = [flag for flag, value in given.items() if value is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} not given: --coordinator=HOST:PORT, --num_processes=N and "
            "--process_id=I go together"
        )
    assert coordinator is not None and count is not None and index is not None
    _check_address("--coordinator", coordinator)
    _check_index("--process_id", index, "--num_processes", count)
    return _explicit("flags", coordinator, count, index)


def _from_slurm(environment: Mapping[str, str]) -> Start:
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
    # By default jax gives each task the one GPU with its local index. This is right for one task
    # per GPU if every task sees all GPUs of the node. Otherwise a task uses all GPUs that SLURM
    # shows it, which jax does for an empty list.
    alone_on_node = re.fullmatch(
        r"1(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "1(x1)")
    )
    bound = environment.get("CUDA_VISIBLE_DEVICES", ",").count(",") == 0
    return Start("SLURM", {"local_device_ids": []} if alone_on_node or bound else {})


def _from_jobset(environment: Mapping[str, str]) -> Start:
    missing = [name for name in _JOBSET if not environment.get(name)]
    if missing:
        raise UserError(
            f"JobSet: {' and '.join(missing)} not set; launch/kubernetes/jobset.yaml sets "
            "JOBSET_COORDINATOR and JOBSET_PROCESSES, an Indexed job JOB_COMPLETION_INDEX"
        )
    coordinator, *numbers = (environment[name] for name in _JOBSET)
    try:
        count, index = map(int, numbers)
    except ValueError:
        raise UserError(
            f"JobSet: JOBSET_PROCESSES={numbers[0]!r} and JOB_COMPLETION_INDEX={numbers[1]!r} "
            "must be whole numbers"
        ) from None
    _check_address("JOBSET_COORDINATOR", coordinator)
    _check_index("JOB_COMPLETION_INDEX", index, "JOBSET_PROCESSES", count)
    return _explicit("JobSet", coordinator, count, index) if count > 1 else _ONE_PROCESS


def _explicit(source: str, coordinator: str, count: int, index: int) -> Start:
    return Start(
        source,
        {
            "coordinator_address": coordinator,
            "num_processes": count,
            "process_id": index,
            "cluster_detection_method": "deactivate",
        },
    )


def _on_tpu_pod(environment: Mapping[str, str]) -> bool:
    if environment.get("TPU_ML_PLATFORM") != "JAX":  # set by `import jax` on TPU hosts
        return False
    if hosts := environment.get("TPU_WORKER_HOSTNAMES"):  # GKE; "localhost" on hosted notebooks
        return "," in hosts or int(environment.get("MEGASCALE_NUM_SLICES", 1)) > 1
    return "TPU_SKIP_MDS_QUERY" not in environment


def _check_address(name: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"{name}={address} is not HOST:PORT, for example 10.0.0.1:8476")


def _check_index(index_name: str, index: int, count_name: str, count: int) -> None:
    if not 0 <= index < count:
        raise UserError(f"{index_name}={index} is not in 0..{count - 1} ({count_name}={count})")
