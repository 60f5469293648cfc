"""Start-up on several processes: the decision, and two processes that connect."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from imagenet_jax.errors import UserError
from imagenet_jax.runtime.processes import Connection
from imagenet_jax.runtime.processes import plan_connection as plan

REPOSITORY = Path(__file__).parents[2]

# The environment of task 3 of `srun --nodes=2 --ntasks-per-node=4`, from SLURM's manual.
SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
    "SLURM_STEP_NODELIST": "gpu[017-018]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}
JOBSET = {
    "KUBERNETES_SERVICE_HOST": "10.96.0.1",
    "JOBSET_COORDINATOR": "train-workers-0-0.train:8476",
    "JOBSET_PROCESSES": "4",
    "JOB_COMPLETION_INDEX": "3",
}
TPU = {"TPU_ML_PLATFORM": "JAX"}


def explicit(source: str, address: str, count: int, index: int) -> Connection:
    return Connection(
        source,
        {
            "coordinator_address": address,
            "num_processes": count,
            "process_id": index,
            "cluster_detection_method": "deactivate",
        },
    )


def test_plain_machine_is_one_process():
    assert plan({}).arguments is None
    assert plan({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}).arguments is None


@pytest.mark.parametrize("environment", [{}, SLURM, JOBSET, TPU])
def test_flags_take_precedence(environment):
    assert plan(environment, "10.0.0.1:8476", 2, 1) == explicit("flags", "10.0.0.1:8476", 2, 1)
    assert plan(environment, None, 1, None).arguments is None
    assert plan(environment, None, 1, 0).arguments is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("10.0.0.1:8476", 2, None), "--process_id not given"),
        ((None, 2, None), "--coordinator and --process_id not given"),
        ((None, None, 0), "--coordinator and --num_processes not given"),
        (("10.0.0.1:8476", 2, 2), "--process_id=2 is not in 0..1"),
        (("10.0.0.1:8476", 2, -1), "--process_id=-1 is not in 0..1"),
        (("10.0.0.1", 2, 0), "--coordinator=10.0.0.1 is not HOST:PORT"),
        (("10.0.0.1:http", 2, 0), "is not HOST:PORT"),
        ((":8476", 2, 0), "is not HOST:PORT"),
        (("10.0.0.1:84760", 2, 0), "is not HOST:PORT"),
    ],
)
def test_contradictory_flags_are_named(flags, said):
    with pytest.raises(UserError, match=re.escape(said)):
        plan({}, *flags)


def test_slurm_task_uses_the_gpus_that_are_visible_to_it():
    one_per_node = SLURM | {"SLURM_NTASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    eight_visible = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
    # One task per node gets all eight; by default jax would use only the first.
    assert plan(one_per_node | eight_visible) == Connection("SLURM", {"local_device_ids": []})
    # One task per GPU, with all GPUs visible: each picks its own, as jax does by default.
    assert plan(SLURM | eight_visible) == Connection("SLURM", {})
    # If SLURM shows each task a single GPU, its number is always 0.
    assert plan(SLURM | {"CUDA_VISIBLE_DEVICES": "3"}) == Connection(
        "SLURM", {"local_device_ids": []}
    )


def test_slurm_without_srun_is_one_process():
    assert plan(SLURM | {"SLURM_NTASKS": "1"}).arguments is None
    batch_script = {"SLURM_JOB_ID": "4242", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
    assert plan(batch_script | {"SLURM_JOB_NUM_NODES": "1"}).arguments is None
    with pytest.raises(UserError, match="2 nodes .* not started by srun"):
        plan(batch_script | {"SLURM_JOB_NUM_NODES": "2"})


def test_jobset_variables_are_read():
    assert plan(JOBSET) == explicit("JobSet", "train-workers-0-0.train:8476", 4, 3)
    one = JOBSET | {"JOBSET_PROCESSES": "1", "JOB_COMPLETION_INDEX": "0"}
    assert plan(one).arguments is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"JOB_COMPLETION_INDEX": ""}, "JOB_COMPLETION_INDEX not set"),
        ({"JOBSET_PROCESSES": ""}, "JOBSET_PROCESSES not set"),
        ({"JOBSET_PROCESSES": "two"}, "must be whole numbers"),
        ({"JOB_COMPLETION_INDEX": "4"}, "JOB_COMPLETION_INDEX=4 is not in 0..3"),
        ({"JOBSET_COORDINATOR": "train-workers-0-0"}, "is not HOST:PORT"),
    ],
)
def test_invalid_jobset_variables_are_named(change, said):
    with pytest.raises(UserError, match=re.escape(said)):
        plan(JOBSET | change)


def test_tpu_pods_are_initialized_by_jax():
    assert plan(TPU) == Connection("TPU", {})
    gke = TPU | {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "a.svc,b.svc"}
    assert plan(gke) == Connection("TPU", {})
    assert plan(gke | JOBSET) == Connection("TPU", {}), "a JobSet on TPUs: jax knows the slice"
    two_slices = TPU | {"TPU_WORKER_HOSTNAMES": "a.svc", "MEGASCALE_NUM_SLICES": "2"}
    assert plan(two_slices) == Connection("TPU", {})


def test_one_tpu_host_is_one_process():
    assert plan(TPU | {"TPU_WORKER_HOSTNAMES": "localhost"}).arguments is None
    assert plan(TPU | {"TPU_SKIP_MDS_QUERY": "1"}).arguments is None
    assert plan({"TPU_SKIP_MDS_QUERY": "1"}).arguments is None, "jax sets it where no chip is"


def test_jax_marks_a_tpu_vm_in_the_environment():
    run = subprocess.run(
        [sys.executable, "-c", "import os, jax; print(os.environ['TPU_ML_PLATFORM'])"],
        env=clean() | {"JAX_FORCE_TPU_INIT": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.stdout.strip() == "JAX", run.stderr


SUM = """
import sys
from imagenet_jax.runtime import processes
flags = sys.argv[1:]
start = processes.connect(flags[0], int(flags[1]), int(flags[2])) if flags else processes.connect()
import jax, numpy as np
from jax.experimental.multihost_utils import process_allgather
total = process_allgather(np.float32(10 ** jax.process_index())).sum()
visible = jax.config.values["jax_cuda_visible_devices"]
print(start.source, jax.process_count(), jax.process_index(), int(total), visible)
"""


def clean() -> dict[str, str]:
    """Return this environment without the variables of a scheduler or of the tests."""
    prefixes = ("SLURM_", "TPU_", "JOBSET_", "JOB_COMPLETION", "JAX_", "XLA_", "MEGASCALE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    return kept | {
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "PYTHONPATH": str(REPOSITORY),
    }


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def as_flags(port: int, index: int) -> tuple[list[str], dict[str, str]]:
    return [f"127.0.0.1:{port}", "2", str(index)], {}


def as_slurm(port: int, index: int) -> tuple[list[str], dict[str, str]]:
    return [], SLURM | {
        "JAX_COORDINATOR_PORT": str(port),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": "0",
    }


@pytest.mark.parametrize(("source", "launch"), [("flags", as_flags), ("SLURM", as_slurm)])
def test_two_processes_connect_and_agree_on_a_sum(source, launch):
    port = free_port()
    processes = []
    for index in range(2):
        arguments, environment = launch(port, index)
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", SUM, *arguments],
                env=clean() | environment,
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for index, (output, errors) in enumerate(outputs):
        # Gloo also reports its connections on stdout.
        assert output.splitlines()[-1].split() == [source, "2", str(index), "11", "all"], errors


def test_missing_peer_is_reported_in_one_line():
    script = "from imagenet_jax.runtime import processes as d; d.INITIALIZATION_TIMEOUT_S = 2; "
    run = subprocess.run(
        [sys.executable, "-c", f"{script} d.connect('127.0.0.1:{free_port()}', 2, 1)"],
        env=clean(), cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 1
    assert "not all processes connected to 127.0.0.1:" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
