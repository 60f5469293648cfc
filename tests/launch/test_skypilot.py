"""launch/skypilot.yaml: its structure, and its run section with a stand-in for python."""

import subprocess
from pathlib import Path

import pytest
import yaml
from yaml_structure import BOOLEAN, COUNT, POSITIVE, STRING, array, obj, one_of, problems

REPOSITORY = Path(__file__).parents[2]

# The fields used here, from SkyPilot's reference of its YAML.
TASK = obj(
    "resources setup run",
    name=STRING,
    workdir=STRING,
    num_nodes=POSITIVE,
    resources=obj(
        "accelerators use_spot job_recovery",
        accelerators=STRING,
        use_spot=BOOLEAN,
        disk_size=POSITIVE,
        job_recovery=obj(
            strategy=one_of("EAGER_NEXT_REGION", "FAILOVER"),
            max_restarts_on_errors=COUNT,
            recover_on_exit_codes=array({"type": "integer", "minimum": 0}),
        ),
    ),
    envs={"type": "object", "values": STRING},
    file_mounts={
        "type": "object",
        "values": obj(name=STRING, mode=one_of("MOUNT", "COPY", "MOUNT_CACHED")),
    },
    setup=STRING,
    run=STRING,
)


@pytest.fixture(scope="module")
def task() -> dict:
    return yaml.safe_load((REPOSITORY / "launch/skypilot.yaml").read_text())


def test_structure_is_valid(task):
    assert problems(task, TASK) == []
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [143]
    mounts = tuple(task["file_mounts"])
    for argument in task["envs"]["ARGUMENTS"].split():
        name, _, path = argument.partition("=")
        assert name == "--config" or path.startswith(mounts), "lost with the spot machine"
    assert (REPOSITORY / task["envs"]["ARGUMENTS"].split()[0].split("=")[1]).exists()


@pytest.mark.parametrize("nodes", [1, 3])
def test_run_starts_the_training_command_on_each_node(task, fakes, nodes, tmp_path):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(fakes.folder / "python-of-test")
    addresses = [f"10.0.0.{i + 2}" for i in range(nodes)]
    for rank in range(nodes):
        told = {
            "SKYPILOT_NODE_IPS": "\n".join(addresses),
            "SKYPILOT_NUM_NODES": str(nodes),
            "SKYPILOT_NODE_RANK": str(rank),
        }
        subprocess.run(
            ["bash", "-c", task["run"]],
            cwd=tmp_path, env=fakes.environment(**task["envs"], **told), check=True, timeout=30,
        )  # fmt: skip
    for rank, command in enumerate(fakes.commands()):
        assert command[1:3] == ["-m", "imagenet_jax.main"]
        assert command[3:-3] == task["envs"]["ARGUMENTS"].split()
        assert command[-3:] == [
            "--coordinator=10.0.0.2:8476", f"--num_processes={nodes}", f"--process_id={rank}"
        ]  # fmt: skip
    assert len(fakes.commands()) == nodes


def test_exit_code_reaches_skypilot(task, fakes, tmp_path):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(fakes.folder / "python-of-test")
    fakes.answer(("main", {"code": 143}))
    run = subprocess.run(
        ["bash", "-c", task["run"]],
        cwd=tmp_path, env=fakes.environment(ARGUMENTS="", SKYPILOT_NODE_IPS="a",
        SKYPILOT_NUM_NODES="1", SKYPILOT_NODE_RANK="0"), timeout=30,
    )  # fmt: skip
    assert run.returncode == 143
