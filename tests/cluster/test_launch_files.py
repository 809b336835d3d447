"""The launch files of launch/clusters: by the schemas of their tools, and the Slurm script run with
stand-ins for Slurm and Ray."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
import typer.main
import yaml

from speechft_ray.cli.app import app

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "launch" / "clusters"
FILES = sorted(path.name for path in FOLDER.iterdir())
LAUNCHER = ("ray-aws.yaml", "ray-on-premise.yaml")
VERSION = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def test_every_kind_of_cluster_has_a_file() -> None:
    kinds = ["Dockerfile", "kuberay-rayjob.yaml", *LAUNCHER, "skypilot.yaml", "slurm.sh"]
    assert sorted(kinds) == FILES


@pytest.mark.parametrize("name", LAUNCHER)
def test_files_of_rays_launcher_fit_its_schema(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(read(name), json.loads(schema.read_text()))
    content = read(name)
    assert content.get("head_node_type") in (None, *content.get("available_node_types", ()))
    for command in (
        content["head_start_ray_commands"][-1],
        content["worker_start_ray_commands"][-1],
    ):
        assert "RAY_AUTH_MODE=token ray start" in command
    assert any(path.endswith(".ray/auth_token") for path in content["file_mounts"])


RAY_JOB = {
    *("activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate"),
    *("metadata", "clusterSelector", "submitterConfig", "managedBy", "deletionStrategy"),
    *("entrypoint", "runtimeEnvYAML", "jobId", "submissionMode", "entrypointResources"),
    *("entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished", "suspend"),
    "shutdownAfterJobFinishes",
}
RAY_CLUSTER = {
    *("suspend", "managedBy", "autoscalerOptions", "headServiceAnnotations", "rayVersion"),
    *("enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec", "authOptions"),
    "workerGroupSpecs",
}
WORKER_GROUP = {
    *("suspend", "groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds"),
    *("resources", "labels", "rayStartParams", "template", "scaleStrategy", "numOfHosts"),
}
POD = {
    *("terminationGracePeriodSeconds", "nodeSelector", "tolerations", "containers", "volumes"),
    *("serviceAccountName", "affinity"),
}
"""Names of fields by the API reference of KubeRay 1.6 (docs.ray.io, "KubeRay CRD API reference")
and of Kubernetes' PodSpec."""


def test_the_ray_job_has_fields_that_kuberay_knows() -> None:
    job = read("kuberay-rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    assert spec.keys() <= RAY_JOB and cluster.keys() <= RAY_CLUSTER
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == VERSION
    assert yaml.safe_load(spec["runtimeEnvYAML"]).keys() == {"env_vars"}
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head.keys() <= {"template", "rayStartParams", "serviceType", "headService", "labels"}
    assert all(group.keys() <= WORKER_GROUP for group in workers)
    for group in (head, *workers):
        check_pod(group["template"]["spec"])
        # Ray's options are texts (object of string to string).
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def check_pod(pod: Mapping[str, Any]) -> None:
    assert pod.keys() <= POD
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/shared"}
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert limits == requests, "Ray reads the limits, Kubernetes places by the requests"


def test_the_task_of_skypilot_has_fields_that_it_knows() -> None:
    """https://docs.skypilot.co/en/latest/reference/yaml-spec.html"""
    task = read("skypilot.yaml")
    fields = {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "volumes"}
    assert task.keys() <= fields | {"file_mounts", "setup", "run", "config", "service"}
    assert task["envs"]["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" in task["secrets"]
    for script in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[script], text=True, check=True)
    commands = [line for line in task["run"].splitlines() if not line.strip().startswith("#")]
    assert not any("ray stop" in line for line in commands), "it would end SkyPilot's own Ray"


def test_the_image_has_the_ray_of_the_constraints() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    assert set(re.findall(r"rayproject/ray:([0-9.]+)-py", text)) == {VERSION}
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    assert {line.split()[0] for line in lines} == {"ARG", "FROM", "COPY", "WORKDIR", "RUN"}
    for path in re.findall(r"scripts/\w+\.py|constraints\.txt", text):
        assert (ROOT / path).is_file()


@pytest.mark.parametrize("name", FILES)
def test_their_commands_are_options_of_speechft(name: str) -> None:
    """Every ``speechft VERB ...`` in a file, also in its comments, parses."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    text = (FOLDER / name).read_text()
    for line in re.findall(r"speechft ((?:run|submit) [^#\n&|]+)", text):
        verb, *arguments = shlex.split(line)
        commands[verb].make_context(verb, arguments)


OPTIONS_OF_SBATCH = {
    *("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "exclusive", "time", "signal"),
    *("requeue", "open-mode", "output", "partition", "account", "mem", "cpus-per-task"),
}
"""sbatch(1)."""


def test_the_slurm_script_is_right_by_its_letters() -> None:
    path = FOLDER / "slurm.sh"
    subprocess.run(["bash", "-n", str(path)], check=True)
    lines = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", path.read_text(), re.MULTILINE)
    assert len(lines) == path.read_text().count("\n#SBATCH")
    options = dict(lines)
    assert options.keys() <= OPTIONS_OF_SBATCH
    assert re.fullmatch(r"B:USR1@\d+", options["signal"]) and "requeue" in options


STAND_INS = {
    "hostname": "echo 10.0.0.1 fe80::1",
    # It starts the step as its child and passes its exit code on.
    "srun": 'echo "$RAY_AUTH_MODE $(wc -c < $RAY_AUTH_TOKEN_PATH)" > "$OUT/auth"; "$@"',
    "ray": 'echo "$@" > "$OUT/ray"; while [ "$1" != -- ]; do shift; done; shift; "$@"',
    "speechft": 'echo "$@" > "$OUT/driver"; trap "exit 75" USR1; touch "$OUT/up"\n'
    'while [ ! -e "$OUT/code" ]; do sleep 0.05; done; exit "$(cat "$OUT/code")"',
    "scontrol": 'echo "$@" > "$OUT/scontrol"',
}


@pytest.mark.parametrize(
    ("code", "state"), [(None, ".speechft"), (0, "mine"), (1, ".speechft"), (2, ".speechft")]
)
def test_the_slurm_script_stops_the_driver_and_is_requeued(
    tmp_path: Path, code: int | None, state: str
) -> None:
    """``None``: Slurm sends USR1 to the batch script before the time is over. ``state``: where the
    script puts its files, of which nothing else is removed."""
    (tmp_path / state).mkdir()
    (tmp_path / state / "thesis.tex").write_text("precious")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in STAND_INS.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    variables = {
        **os.environ,
        "PATH": f"{programs}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "OUT": str(tmp_path),
        "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NUM_NODES": "2",
        **({"SPEECHFT_STATE": str(tmp_path / state)} if state == "mine" else {}),
    }
    command = ["bash", str(FOLDER / "slurm.sh"), "run", "--space", "a b.yaml"]
    with subprocess.Popen(command, env=variables, cwd=tmp_path) as script:
        until = time.monotonic() + 300
        while not (tmp_path / "up").exists():
            assert script.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        if code is None:
            script.send_signal(signal.SIGUSR1)
        else:
            (tmp_path / "code").write_text(str(code))
        assert script.wait(timeout=300) == (75 if code is None else code)
    assert (tmp_path / "driver").read_text() == "run --space a b.yaml --address 10.0.0.1:32345\n"
    assert (tmp_path / "auth").read_text().split() == ["token", "64"]
    started = (tmp_path / "ray").read_text()
    assert started.startswith("symmetric-run --address 10.0.0.1:32345 --min-nodes 2 ")
    requeued = tmp_path / "scontrol"
    assert requeued.exists() == (code is None)
    if code is None:
        assert requeued.read_text() == "requeue 12345\n"
    assert [path.name for path in (tmp_path / state).iterdir()] == ["thesis.tex"]
