"""launch/kubernetes: structure of the manifest, variables of the pods, calls of kubectl."""

import re
import shlex

import pytest
import yaml
from yaml_structure import BOOLEAN, COUNT, POSITIVE, STRING, array, obj, one_of, problems

from imagenet_jax.runtime.processes import plan_connection

LAUNCH = "launch/kubernetes/launch.sh"
OWN = ["--name=resnet50", "--image=registry.example/imagenet_jax:1", "--claim=imagenet"]
TRAIN = ["--config=configs/resnet50.py", "--workdir=/shared/runs/a", "--config.data.path=/shared/d"]

# The fields used here, with the types and allowed values of the published APIs:
# core/v1 PodSpec, batch/v1 JobSpec (podFailurePolicy: Kubernetes 1.31), jobset.x-k8s.io/v1alpha2.
_ENV = array(
    obj(
        "name",
        name=STRING,
        value=STRING,
        valueFrom=obj("fieldRef", fieldRef=obj("fieldPath", fieldPath=STRING)),
    )
)
_CONTAINER = obj(
    "name image",
    name=STRING,
    image=STRING,
    command=array(STRING),
    args=array(STRING),
    env=_ENV,
    ports=array(obj("containerPort", containerPort=POSITIVE)),
    resources=obj(limits={"type": "object", "values": POSITIVE}),
    volumeMounts=array(obj("name mountPath", name=STRING, mountPath=STRING)),
)
_POD = obj(
    "containers restartPolicy",
    restartPolicy=one_of("Never"),  # what a Job with a podFailurePolicy requires
    terminationGracePeriodSeconds=COUNT,
    tolerations=array(
        obj(
            key=STRING,
            operator=one_of("Exists", "Equal"),
            effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
        )
    ),
    containers=array(_CONTAINER),
    volumes=array(
        obj(
            "name",
            name=STRING,
            persistentVolumeClaim=obj("claimName", claimName=STRING),
            emptyDir=obj(medium=one_of("", "Memory")),
        )
    ),
)
_POD_FAILURE = obj(
    "rules",
    rules=array(
        obj(
            "action",
            action=one_of("FailJob", "FailIndex", "Ignore", "Count"),
            onExitCodes=obj(
                "operator values",
                containerName=STRING,
                operator=one_of("In", "NotIn"),
                values=array(COUNT),
            ),
            onPodConditions=array(obj("type", type=STRING, status=one_of("True", "False"))),
        )
    ),
)
_JOB = obj(
    "template",
    parallelism=POSITIVE,
    completions=POSITIVE,
    completionMode=one_of("Indexed", "NonIndexed"),
    backoffLimit=COUNT,
    podFailurePolicy=_POD_FAILURE,
    template=obj("spec", spec=_POD),
)
JOBSET = obj(
    "apiVersion kind metadata spec",
    apiVersion=one_of("jobset.x-k8s.io/v1alpha2"),
    kind=one_of("JobSet"),
    metadata=obj("name", name=STRING),
    spec=obj(
        "replicatedJobs",
        coordinator=obj("replicatedJob", replicatedJob=STRING, jobIndex=COUNT, podIndex=COUNT),
        network=obj(enableDNSHostnames=BOOLEAN, publishNotReadyAddresses=BOOLEAN),
        failurePolicy=obj(
            maxRestarts=COUNT,
            restartStrategy=one_of("Recreate", "BlockingRecreate"),
            rules=array(
                obj(
                    "name action",
                    name=STRING,
                    action=one_of(
                        "FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"
                    ),
                    onJobFailureReasons=array(
                        one_of("PodFailurePolicy", "BackoffLimitExceeded", "DeadlineExceeded")
                    ),
                )
            ),
        ),
        replicatedJobs=array(
            obj("name template", name=STRING, replicas=POSITIVE, template=obj("spec", spec=_JOB))
        ),
    ),
)


def manifest_of(fakes, *arguments: str) -> dict:
    run = fakes.run(LAUNCH, "--dry_run", *OWN, *arguments)
    assert run.returncode == 0, run.stderr
    assert not fakes.commands("kubectl")
    return yaml.safe_load(run.stdout)


def job_of(manifest: dict) -> dict:
    (replicated,) = manifest["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def container_of(manifest: dict) -> dict:
    (container,) = job_of(manifest)["template"]["spec"]["containers"]
    return container


def test_manifest_has_the_published_structure(fakes):
    manifest = manifest_of(fakes, *TRAIN)
    assert problems(manifest, JOBSET) == []
    assert "${" not in yaml.safe_dump(manifest), "a field that was not filled in"
    volumes = {volume["name"] for volume in job_of(manifest)["template"]["spec"]["volumes"]}
    assert volumes == {mount["name"] for mount in container_of(manifest)["volumeMounts"]}


def test_structure_check_finds_mistakes(fakes):
    manifest = manifest_of(fakes, *TRAIN)
    job_of(manifest)["paralelism"] = 2
    container_of(manifest)["resources"]["limits"]["nvidia.com/gpu"] = "8"
    del job_of(manifest)["template"]["spec"]["restartPolicy"]
    assert len(problems(manifest, JOBSET)) == 3


def test_every_pod_gets_its_index_and_the_coordinator(fakes):
    manifest = manifest_of(fakes, "--nodes=4", *TRAIN)
    job, container = job_of(manifest), container_of(manifest)
    assert (job["parallelism"], job["completions"]) == (4, 4)
    # The annotation that JobSet writes: JOBSET-JOB-JOBINDEX-PODINDEX.JOBSET
    chosen = manifest["spec"]["coordinator"]
    host = f"resnet50-{chosen['replicatedJob']}-{chosen['jobIndex']}-{chosen['podIndex']}.resnet50"
    assert chosen["replicatedJob"] == manifest["spec"]["replicatedJobs"][0]["name"]
    environment = {"JOB_COMPLETION_INDEX": "3"}  # set by Kubernetes in Indexed jobs
    for variable in container["env"]:
        if "valueFrom" in variable:
            path = variable["valueFrom"]["fieldRef"]["fieldPath"]
            assert path == "metadata.annotations['jobset.sigs.k8s.io/coordinator']"
            value = host
        else:  # Kubernetes expands $(NAME) of variables that stand before
            value = re.sub(r"\$\((\w+)\)", lambda m: environment[m[1]], variable["value"])
        environment[variable["name"]] = value
    start = plan_connection(environment)
    assert start.source == "JobSet"
    assert start.arguments is not None
    assert start.arguments["coordinator_address"] == f"{host}:8476"
    assert (start.arguments["num_processes"], start.arguments["process_id"]) == (4, 3)
    assert {"containerPort": 8476} in container["ports"]


def test_command_is_the_same_and_arguments_are_unchanged(fakes):
    odd = ['--config.a="b"', r"--config.c=\d", "--config.e=f g", "--config.h=& ${GPUS} '", "-- # :"]
    container = container_of(manifest_of(fakes, *TRAIN, *odd))
    assert container["command"] == ["python", "-m", "imagenet_jax.main"]
    assert container["args"] == [*TRAIN, *odd]
    (last,) = container_of(manifest_of(fakes, "$(HOSTNAME)"))["args"]
    assert last == "$$(HOSTNAME)", "which Kubernetes hands over as $(HOSTNAME)"


def test_crashes_are_counted_but_not_preemptions(fakes):
    manifest = manifest_of(fakes, *TRAIN)
    (rule,) = manifest["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] > 0
    job = job_of(manifest)
    assert job["backoffLimit"] == 0, "one pod alone cannot start again: its peers are gone too"
    by_code, by_condition = job["podFailurePolicy"]["rules"]
    assert by_code["onExitCodes"]["values"] == [143]
    assert by_code["onExitCodes"]["containerName"] == container_of(manifest)["name"]
    assert by_condition["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]


def test_kubectl_gets_the_manifest(fakes):
    run = fakes.run(LAUNCH, *OWN, "--namespace=lab", "--gpus=4", *TRAIN)
    assert run.returncode == 0, run.stderr
    (call,) = fakes.calls("kubectl")
    assert call["argv"] == ["kubectl", "--namespace=lab", "create", "--filename=-"]
    manifest = yaml.safe_load(call["stdin"])
    assert container_of(manifest)["resources"]["limits"] == {"nvidia.com/gpu": 4}
    hints = dict(line.split(":", 1) for line in run.stdout.strip().splitlines())
    assert shlex.split(hints["stop"])[-3:] == ["delete", "jobset", "resnet50"]
    assert "logs --follow" in hints["watch"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("--name=ResNet", "--name=ResNet"),
        ("--name=" + "a" * 41, "up to 40"),
        ("--image=a b", "--image=a b"),
        ("--claim=", "--claim="),
        ("--nodes=0", "--nodes=0"),
        ("--gpus=many", "--gpus=many"),
        ("--config.a=b\nc", "control character"),
    ],
)
def test_invalid_flags_are_refused_before_anything_is_created(fakes, wrong, said):
    run = fakes.run(LAUNCH, *OWN, wrong, *TRAIN)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert said in run.stderr
    assert not fakes.commands()
