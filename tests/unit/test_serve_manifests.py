"""What Kubernetes is told to serve: options that recmtl has, probes that it answers, and few rights."""

from __future__ import annotations

from pathlib import Path

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
