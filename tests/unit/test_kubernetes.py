"""What TorchX would submit to Kubernetes: valid for Volcano, and no other than before."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from torchx.runner import get_runner
from torchx.runner.config import load
from torchx.schedulers import kubernetes_scheduler
from volcano import JOB

CHECKOUT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("kubernetes_train.yaml")
CLAIM = "type=volume,src=recmtl,dst=/data"
TRAIN = ["--name", "merrec-mmoe", "--image", "registry.example/recmtl:1", "--mounts", CLAIM]
COMMAND = ["--", "merrec_mmoe", "--data", "/data/merrec", "--run", "/data/runs/mmoe"]
SCORE = ["--", "/data/run", "/data/raw", "/data/out"]
ROLLING = ["--recipe", "merrec_time", "--raw", "/data/raw", "--out", "/data/out", "--config", "mmoe"]
PIPELINE = ["--recipe", "merrec", "--raw", "/data/raw", "--out", "/data/out", "--models", "mmoe,ple"]


@pytest.fixture
def manifest(monkeypatch):
    """Manifest of a component on Kubernetes by the settings in torchx_specs/, as the cluster would be sent it."""
    monkeypatch.setattr(kubernetes_scheduler, "make_unique", lambda name: f"{name}-x1y2z3")

    def dry_run(component: str, *args: str) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        with (CHECKOUT / "torchx_specs" / "kubernetes.torchxconfig").open() as file:
            load("kubernetes", file, settings)
        with get_runner() as runner:
            info = runner.dryrun_component(f"{CHECKOUT}/components/{component}", list(args), "kubernetes", settings)
        return yaml.safe_load(str(info.request))

    return dry_run


def hosts_variable(job: dict[str, Any]) -> str:
    """Name of the variable in which Volcano's plugin `svc` gives every pod the first task's host names."""
    return f"VC_{job['spec']['tasks'][0]['name'].replace('-', '_').upper()}_HOSTS"


@pytest.mark.filterwarnings(r"ignore:\s*Role .* configured with restarts")
@pytest.mark.parametrize(
    ("component", "args"),
    [
        ("train.py:ddp", [*TRAIN, "--h", "h100x8", "--nodes", "2", "--max_retries", "3", *COMMAND]),
        ("train.py:ddp", [*TRAIN, "--mounts", "type=bind,src=/logs,dst=/logs,readonly", *COMMAND]),
        ("prepare.py:prepare", ["--mounts", CLAIM, "--", "merrec", "/data/raw", "/data/merrec"]),
        ("predict.py:predict", ["--mounts", CLAIM, "--", "/data/export", "/data/raw", "/data/out"]),
        ("predict.py:predict", ["--mounts", CLAIM, "--nodes", "2", "--h", "h100x8", "--ranks", "0", *SCORE]),
        ("benchmark.py:benchmark", ["--mounts", CLAIM, "--h", "h100x1", "--", "--out", "/data/results"]),
        ("pipeline.py:pipeline", [*PIPELINE, "--mounts", CLAIM, "--max_retries", "1"]),
        ("rolling.py:rolling", [*ROLLING, "--mounts", CLAIM, "--", "--gate", "like.auc >= 0.7"]),
    ],
)
def test_manifest_is_a_volcano_job(manifest, component, args):
    job = manifest(component, *args)
    jsonschema.validate(job, JOB)
    names = [task["name"] for task in job["spec"]["tasks"]]
    assert len(set(names)) == len(names)
    for task in job["spec"]["tasks"]:
        # The name of a task's only pod.
        assert len(f"{job['metadata']['name']}-{task['name']}-0") <= 63
        pod = task["template"]["spec"]
        [container] = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.filterwarnings(r"ignore:\s*Role .* configured with restarts")
def test_manifest_is_the_golden_one(manifest):
    job = manifest("train.py:ddp", *TRAIN, "--h", "h100x8", "--nodes", "2", "--max_retries", "3", *COMMAND)
    for task in job["spec"]["tasks"]:
        del task["template"]["metadata"]["labels"]["torchx.pytorch.org/version"]
    assert job == yaml.safe_load(GOLDEN.read_text())


def test_nodes_meet_at_the_first_pod(manifest):
    job = manifest("train.py:ddp", *TRAIN, "--nodes", "3", *COMMAND)
    first, *others = [task["template"]["spec"]["containers"][0] for task in job["spec"]["tasks"]]
    assert {"name": "TORCHX_RANK0_HOST", "value": "localhost"} in first["env"]
    assert "--rdzv-endpoint ${TORCHX_RANK0_HOST:=localhost}:29500 " in first["command"][2]
    assert len(others) == 2
    for container in others:
        assert f"--rdzv-endpoint ${{{hosts_variable(job)}:=localhost}}:29500 " in container["command"][2]


def test_gpus_claim_and_shared_memory_reach_the_pod(manifest):
    job = manifest("train.py:ddp", *TRAIN, "--gpu", "4", *COMMAND)
    [task] = job["spec"]["tasks"]
    pod = task["template"]["spec"]
    [container] = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert "--nproc-per-node 4 " in container["command"][2]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounted["/dev/shm"]["emptyDir"] == {"medium": "Memory"}
    assert mounted["/data"]["persistentVolumeClaim"] == {"claimName": "recmtl"}
    assert pod["serviceAccountName"] == "recmtl"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda job: job.update(apiVersion="batch/v1"),
        lambda job: job["spec"].update(maxRetries=3),
        lambda job: job["spec"]["tasks"][0].update(name="my_task"),
        lambda job: job["spec"]["tasks"][0].update(policies=[{"event": "PodDied", "action": "RestartJob"}]),
        lambda job: job["spec"]["tasks"][0]["template"]["spec"]["containers"][0]["env"].append(
            {"name": "A", "value": 1}
        ),
        lambda job: job["spec"]["tasks"][0]["template"]["spec"]["containers"][0]["resources"]["limits"].update(
            cpu="2 "
        ),
    ],
)
def test_schema_finds_mistakes(manifest, spoil):
    job = copy.deepcopy(manifest("train.py:ddp", *TRAIN, *COMMAND))
    jsonschema.validate(job, JOB)
    spoil(job)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, JOB)


def test_namespace_has_what_the_settings_and_the_readme_name():
    parts = list(yaml.safe_load_all((CHECKOUT / "torchx_specs" / "kubernetes.yaml").read_text()))
    named = {part["kind"]: part["metadata"]["name"] for part in parts}
    assert named == {"ServiceAccount": "recmtl", "PersistentVolumeClaim": "recmtl", "Job": "recmtl-volume"}
    settings = (CHECKOUT / "torchx_specs" / "kubernetes.torchxconfig").read_text()
    assert re.search(r"^service_account = recmtl$", settings, re.MULTILINE)
    job = parts[2]["spec"]["template"]["spec"]
    assert job["volumes"][0]["persistentVolumeClaim"]["claimName"] == "recmtl"
    assert "useradd --create-home --uid 1000 recmtl" in (CHECKOUT / "Dockerfile").read_text()
    assert job["containers"][0]["command"] == ["chown", "1000:1000", "/data"]
