"""What Kubernetes is told to serve: options that recmtl has, probes that it answers, and few rights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes
import pytest
import yaml

from recmtl.cli import Serve
from recmtl.options import parse_words

FOLDER = Path(__file__).resolve().parents[2] / "torchx_specs" / "serve"
[DEPLOYMENT, SERVICE] = yaml.safe_load_all((FOLDER / "deployment.yaml").read_text())
INFERENCE_SERVICE = yaml.safe_load((FOLDER / "inference_service.yaml").read_text())
PODS = {"deployment": DEPLOYMENT["spec"]["template"]["spec"], "kserve": INFERENCE_SERVICE["spec"]["predictor"]}


@pytest.mark.parametrize("name", PODS)
def test_the_container_serves_from_read_only_files_without_root(name):
    pod = PODS[name]
    [container] = pod["containers"]
    command, *words = container["args"]
    options = parse_words(Serve, words, "serve")
    assert (command, options.host) == ("serve", "0.0.0.0")
    assert container["ports"][0]["containerPort"] == options.port
    assert pod["securityContext"] == {"runAsNonRoot": True, "runAsUser": 1000}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounts["/data"]["readOnly"]
    assert options.export.is_relative_to("/data")
    assert volumes[mounts["/data"]["name"]]["persistentVolumeClaim"] == {"claimName": "recmtl", "readOnly": True}
    assert volumes[mounts[container["workingDir"]]["name"]] == {"name": "tmp", "emptyDir": {}}


def test_probes_service_and_annotations_name_the_port_of_the_deployment():
    template = DEPLOYMENT["spec"]["template"]
    [container] = template["spec"]["containers"]
    paths = {key: container[key]["httpGet"] for key in container if key.endswith("Probe")}
    assert paths == {
        "startupProbe": {"path": "/v2/health/ready", "port": "http"},
        "readinessProbe": {"path": "/v2/health/ready", "port": "http"},
        "livenessProbe": {"path": "/v2/health/live", "port": "http"},
    }
    assert container["ports"] == [{"name": "http", "containerPort": 8080}]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == "8080"
    assert template["spec"]["terminationGracePeriodSeconds"] == 30
    labels = template["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == SERVICE["spec"]["selector"] == labels
    assert SERVICE["spec"]["ports"][0]["targetPort"] == "http"


def check(value: Any, kind: str, where: str) -> None:
    """Compare a part of a manifest with the client's model of the Kubernetes API: keys, types, what is required."""
    if found := re.fullmatch(r"list\[(.+)\]", kind):
        assert isinstance(value, list), where
        for place, item in enumerate(value):
            check(item, found[1], f"{where}[{place}]")
    elif found := re.fullmatch(r"dict\(str, (.+)\)", kind):
        assert isinstance(value, dict), where
        for key, item in value.items():
            assert isinstance(key, str), where
            check(item, found[1], f"{where}.{key}")
    elif kind in ("str", "int", "bool", "float"):
        assert type(value).__name__ == kind, f"{where}: {value!r} is no {kind}"
    elif kind == "object":  # a number or a name, as of ports
        assert isinstance(value, int | str), where
    else:
        model = getattr(kubernetes.client, kind)
        names = {written: name for name, written in model.attribute_map.items()}
        assert set(value) <= set(names), f"{where}: {set(value) - set(names)}"
        for key, item in value.items():
            check(item, model.openapi_types[names[key]], f"{where}.{key}")
        model(**{names[key]: item for key, item in value.items()})  # raises where something that is required is absent


def test_manifests_are_what_the_kubernetes_api_knows():
    check(DEPLOYMENT, "V1Deployment", "deployment")
    check(SERVICE, "V1Service", "service")
    # A container of its own is a pod's specification, where KServe's own runtimes have `model`.
    check(INFERENCE_SERVICE["spec"]["predictor"], "V1PodSpec", "predictor")
    with pytest.raises(AssertionError, match="imagePulPolicy"):
        check({"containers": [{"name": "a", "imagePulPolicy": "Never"}]}, "V1PodSpec", "pod")
    with pytest.raises(AssertionError, match="is no int"):
        check({"containers": [{"name": "a", "ports": [{"containerPort": "8080"}]}]}, "V1PodSpec", "pod")
    with pytest.raises(ValueError, match="containers"):
        check({}, "V1PodSpec", "pod")


def test_kserve_is_told_the_protocol_and_the_port():
    [container] = INFERENCE_SERVICE["spec"]["predictor"]["containers"]
    assert container["name"] == "kserve-container"
    # KServe takes a container of its own to speak version 1 unless this variable says otherwise.
    assert {"name": "PROTOCOL", "value": "v2"} in container["env"]
    assert container["ports"] == [{"containerPort": 8080, "protocol": "TCP"}]
