"""What is deployed: the RayJob, held to KubeRay's schema where that is at hand; the scripts, which are run; the image's files."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from promptmill.configs.loading import load
from promptmill.jobs.clusters.doctor import versions
from tests.jobs.deploy.kubernetes import MAP, crd_schema, problems

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "jobs/deploy"
CRD = Path(os.environ.get("PROMPTMILL_RAYJOB_CRD", ROOT.parent / "shared/kuberay/rayjobs-crd.yaml"))


def of(required: str = "", **fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": required.split()}


def items(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


TEXT, NUMBER, YES = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
POD = of(
    "spec",
    spec=of(
        "containers",
        automountServiceAccountToken=YES,
        nodeSelector=MAP,
        tolerations=items(of(key=TEXT, operator={"enum": ["Exists", "Equal"]}, value=TEXT, effect={"enum": ["NoSchedule"]})),
        terminationGracePeriodSeconds=NUMBER,
        securityContext=of(runAsNonRoot=YES, runAsUser=NUMBER, runAsGroup=NUMBER, fsGroup=NUMBER),
        containers=items(
            of(
                "name image resources",
                name=TEXT,
                image=TEXT,
                ports=items(of("containerPort", name=TEXT, containerPort=NUMBER)),
                env=items(of("name value", name=TEXT, value=TEXT)),
                envFrom=items(of("secretRef", secretRef=of("name", name=TEXT, optional=YES))),
                resources=of("requests limits", requests=MAP, limits=MAP),
                volumeMounts=items(of("name mountPath", name=TEXT, mountPath=TEXT, readOnly=YES)),
            )
        ),
        volumes=items(of("name", name=TEXT, configMap=of("name", name=TEXT), emptyDir=of())),
    ),
)
# The fields of a RayJob that ours has: what can be held against it where the CRD is not at hand.
KNOWN = of(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=of("name", name=TEXT),
    spec=of(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode"]},
        submitterConfig=of("backoffLimit", backoffLimit=NUMBER),
        backoffLimit=NUMBER,
        shutdownAfterJobFinishes=YES,
        ttlSecondsAfterFinished=NUMBER,
        rayClusterSpec=of(
            "rayVersion headGroupSpec",
            rayVersion=TEXT,
            authOptions=of(mode={"enum": ["token"]}),
            enableInTreeAutoscaling=YES,
            autoscalerOptions=of(version={"enum": ["v1", "v2"]}, upscalingMode=TEXT, idleTimeoutSeconds=NUMBER),
            headGroupSpec=of("template", rayStartParams=MAP, template=POD),
            workerGroupSpecs=items(
                of(
                    "groupName template",
                    groupName=TEXT,
                    replicas=NUMBER,
                    minReplicas=NUMBER,
                    maxReplicas=NUMBER,
                    rayStartParams=MAP,
                    template=POD,
                )
            ),
        ),
    ),
)
SCHEMAS = {"known": KNOWN}
if CRD.is_file():
    SCHEMAS["crd"] = crd_schema(yaml.load(CRD.read_text(), Loader=yaml.CSafeLoader), "v1")

with_each_schema = pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)


@pytest.fixture
def documents():
    return list(yaml.safe_load_all((DEPLOY / "rayjob.yaml").read_text()))


@pytest.fixture
def job(documents):
    return documents[1]


def pods(job):
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


@with_each_schema
def test_a_rayjob_is_what_kubernetes_knows(schema, job):
    assert problems(schema, job) == []


def paths(found, before=()):
    """The way to every mapping's key in an object."""
    for name, value in found.items() if isinstance(found, dict) else enumerate(found):
        if isinstance(found, dict):
            yield (*before, name)
        if isinstance(value, dict | list):
            yield from paths(value, (*before, name))


# Their keys are names of somebody else: of resources, labels, parameters of `ray start`.
FREE = ("nodeSelector", "requests", "limits", "rayStartParams")


@with_each_schema
def test_any_field_of_a_rayjob_that_is_misspelled_is_found(schema, job):
    ways = [way for way in paths(job) if way[-2:-1] not in [(free,) for free in FREE]]
    assert len(ways) > 90
    for *way, last in ways:
        place = job
        for step in way:
            place = place[step]
        value = place.pop(last)
        place[f"{last}x"] = value
        assert problems(schema, job), [*way, last]
        del place[f"{last}x"]
        place[last] = value


@with_each_schema
@pytest.mark.parametrize(
    ("way", "wrong"),
    [
        (("backoffLimit",), "3"),
        (("rayClusterSpec", "rayVersion"), 2.6),
        (("rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("rayClusterSpec", "autoscalerOptions", "version"), "v3"),
    ],
)
def test_a_value_of_another_type_is_found(schema, job, way, wrong):
    place = job["spec"]
    for step in way[:-1]:
        place = place[step]
    place[way[-1]] = wrong
    assert problems(schema, job)


def test_two_ports_that_are_one_are_found(job):
    schema = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["containerPort", "protocol"]}
    ports = [{"containerPort": 1}, {"containerPort": 1, "protocol": "UDP"}]
    assert problems(schema, ports) == []
    assert problems(schema, [*ports, {"containerPort": 1, "name": "other"}])


def test_a_rayjob_runs_the_ray_that_is_pinned(job):
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == versions((ROOT / "requirements.lock").read_text())["ray"]


def test_a_rayjob_runs_the_image_of_this_version(job):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {pod["containers"][0]["image"] for pod in pods(job)} == {f"promptmill:{project['version']}"}


def test_the_config_of_a_rayjob_loads(documents, tmp_path):
    (tmp_path / "config.yaml").write_text(documents[0]["data"]["config.yaml"])
    config = load(str(tmp_path / "config.yaml"))
    assert config.output is not None and config.output.startswith("s3://")


def test_a_rayjob_holds_no_secret_itself(job):
    for pod in pods(job):
        [container] = pod["containers"]
        assert {entry["secretRef"]["name"] for entry in container["envFrom"]} == {"promptmill-s3", "promptmill-hub"}
        assert not [entry["name"] for entry in container.get("env", []) if re.search("KEY|TOKEN|SECRET|PASSWORD", entry["name"])]


def test_what_pods_mount_is_there(documents, job):
    for pod in pods(job):
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
        assert [v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v] == [documents[0]["metadata"]["name"]]


def test_gpu_pods_may_be_spot_nodes_and_come_in_numbers_that_fit(job):
    [group] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    pod = group["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["tolerations"] and pod["nodeSelector"]


def test_the_entrypoint_reaches_ray_through_kuberays_shell_as_it_is(job):
    entrypoint = job["spec"]["entrypoint"]
    words = shlex.split(entrypoint)
    # KubeRay pastes it into a command line, where `||` and `;` would end `ray job submit`.
    said = subprocess.run(["bash", "-ec", f"printf '%s\\n' {entrypoint} ;"], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == words
    assert shlex.join(words) == entrypoint
    workdir = re.search(r"^WORKDIR (\S+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert workdir is not None
    script = ROOT / Path(words[0]).relative_to(workdir[1])
    assert os.access(script, os.X_OK)
    mounted = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert str(Path(words[3]).parent) in [mount["mountPath"] for mount in mounted]


@pytest.mark.parametrize(("status", "seen"), [(0, 0), (1, 1), (2, 2), (3, 0), (130, 130)])
def test_a_job_of_failed_rows_is_done(status, seen):
    assert subprocess.run([DEPLOY / "entrypoint.sh", "sh", "-c", f"exit {status}"], stderr=subprocess.DEVNULL).returncode == seen


def test_a_job_that_is_stopped_waits_for_its_driver():
    driver = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), print('done'), sys.exit(130)))"
    command = [DEPLOY / "entrypoint.sh", sys.executable, "-c", f"{driver}; print('up', flush=True); signal.pause()"]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert job.stdout is not None and job.stdout.readline() == "up\n"
    os.killpg(job.pid, signal.SIGTERM)  # Ray signals each process of a job
    assert job.wait(10) == 130
    assert job.stdout.read() == "done\n"


@pytest.mark.parametrize(
    "script", [*sorted(DEPLOY.glob("*.sh")), *sorted((ROOT / "bin").iterdir()), ROOT / ".ci/run"], ids=lambda path: path.name
)
def test_shellcheck_finds_nothing(script):
    said = subprocess.run([Path(sys.executable).with_name("shellcheck"), "--norc", script], capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (0, "")


STAND_INS = {
    "hostname": "echo 10.0.0.1 10.0.0.2",
    "scontrol": 'echo "scontrol $*" >>"$LOG"',
    # Of its tasks, one a node, that of the first has the driver.
    "srun": 'echo "srun $*" >>"$LOG"; while [ "$1" != ray ]; do shift; done; "$@"; exit "${SRUN_STATUS:-$?}"',
    "ray": """
[ "$1" = symmetric-run ] || { umask >>"$LOG"; exit; }
until [ "$1" = -- ]; do shift; done; shift
[ -z "${LATE:-}" ] || { echo "nodes are waited for" >>"$LOG"; sleep 0.3; }
"$@"
""",
    # It finishes what is in flight, which takes a moment.
    "promptmill": """
trap 'echo TERM >>"$LOG"; asked=yes' TERM
echo "promptmill $*" >>"$LOG"
[ -z "${DONE:-}" ] || exit "$DONE"
until [ "${asked:-}" ]; do sleep 0.02; done
for _ in {1..20}; do sleep 0.02; done
exit "$STOPPED"
""",
}


@pytest.fixture
def slurm(tmp_path):
    """Starts slurm.sh beside stand-ins of Slurm's and Ray's commands, which write down how they are called."""
    commands = tmp_path / ".venv/bin"
    commands.mkdir(parents=True)
    for name, body in STAND_INS.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    started = []

    def start(**environment):
        slurm = {"SLURM_JOB_ID": "41003", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "4"}
        known = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
        known |= slurm | {"LOG": str(tmp_path / "log"), "TMPDIR": str(tmp_path)} | environment
        command = ["bash", DEPLOY / "slurm.sh", "a b.yaml", "--out", "s3://there"]
        started.append(
            subprocess.Popen(command, cwd=tmp_path, env=known, stdout=subprocess.PIPE, text=True, start_new_session=True)
        )
        return started[-1], tmp_path / "log"

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(log, words):
    end = time.monotonic() + 10
    while not (log.exists() and words in log.read_text()):
        assert time.monotonic() < end, f"{words} did not come"
        time.sleep(0.02)


def test_slurm_runs_the_command_on_all_nodes_and_says_how_it_ended(slurm):
    job, log = slurm(DONE="3")
    assert job.wait(10) == 3
    said = log.read_text()
    assert "--no-kill" in said and "symmetric-run --address 10.0.0.1:21003 --min-nodes 2 --num-cpus=4 --" in said
    assert "promptmill run a b.yaml --out s3://there --address auto --wait 90\n" in said
    assert said.startswith("0077\n")  # the token is nobody else's
    assert not list(log.parent.glob("promptmill-*"))


def test_slurm_takes_the_drivers_word_over_that_of_a_node_that_died(slurm):
    job, _ = slurm(DONE="0", SRUN_STATUS="137")
    assert job.wait(10) == 0


@pytest.mark.parametrize(
    ("sent", "driver", "requeued"),
    [(signal.SIGUSR1, 130, True), (signal.SIGUSR1, 0, False), (signal.SIGUSR1, 3, False), (signal.SIGTERM, 130, False)],
)
def test_slurm_stops_the_driver_once_and_goes_on_later_where_the_time_was_up(slurm, sent, driver, requeued):
    job, log = slurm(STOPPED=str(driver))
    until(log, "\npromptmill run a b.yaml ")  # not the srun line, which holds the text of the function
    job.send_signal(sent)
    until(log, "\nTERM\n")
    job.send_signal(sent)
    assert job.wait(10) == driver
    said = log.read_text()
    assert said.splitlines().count("TERM") == 1
    assert ("scontrol requeue 41003" in said) == requeued


@pytest.mark.parametrize("sent", [(signal.SIGTERM, signal.SIGUSR1), (signal.SIGUSR1, signal.SIGTERM)])
def test_a_job_that_somebody_ended_does_not_come_back_when_its_time_is_up_meanwhile(slurm, sent):
    job, log = slurm(STOPPED="130")
    until(log, "\npromptmill run a b.yaml ")
    job.send_signal(sent[0])
    until(log, "\nTERM\n")
    job.send_signal(sent[1])
    assert job.wait(10) == 130
    assert "scontrol" not in log.read_text()


def test_slurm_stops_a_driver_that_is_not_there_yet(slurm):
    job, log = slurm(STOPPED="130", LATE="yes")
    until(log, "waited for")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(10) in (130, 128 + signal.SIGTERM)  # the latter where it could not listen yet
    assert "scontrol requeue 41003" in log.read_text()


def test_an_image_gets_nothing_that_git_does_not_keep():
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line}
    left_out = {line.removeprefix("**/").strip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line}
    assert ignored | {".git"} <= left_out


def test_an_image_is_pinned_and_not_roots():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("FROM")] == ["FROM python:3.11-slim-bookworm"]
    assert "--constraint requirements.lock" in "\n".join(lines)
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000:1000"]
    assert not [line for line in lines if re.search("(KEY|TOKEN|SECRET|PASSWORD) *=", line)]
