"""The part of Volcano's Job (`batch.volcano.sh/v1alpha1`) that TorchX fills in, as a JSON schema.

Types, limits and required keys are those of the custom resource definition `jobs.batch.volcano.sh`; the pod template is
Kubernetes' `core/v1`. Stricter than both in one thing: keys that are not named here are errors, for a cluster would
silently drop a misspelt one.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def obj(*required: str, **properties: Schema) -> Schema:
    """An object with these properties only."""
    return {"type": "object", "required": [*required], "properties": properties, "additionalProperties": False}


def array(items: Schema, **limits: int) -> Schema:
    """A list."""
    return {"type": "array", "items": items, **limits}


def mapping(values: Schema) -> Schema:
    """An object with any keys."""
    return {"type": "object", "additionalProperties": values}


TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}
# Names become host names (RFC 1123), and a port's name a service's (RFC 6335).
NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
PORT_NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 15}
LABEL: Schema = {"type": "string", "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", "maxLength": 63}
VARIABLE: Schema = {"type": "string", "pattern": "^[-._a-zA-Z][-._a-zA-Z0-9]*$"}

POLICY = obj(
    "event",
    "action",
    event={
        "enum": ["*", "PodPending", "PodRunning", "PodFailed", "PodEvicted", "Unknown", "TaskCompleted", "OutOfSync"]
    },
    action={
        "enum": ["AbortJob", "RestartJob", "RestartTask", "RestartPod", "TerminateJob", "CompleteJob", "ResumeJob"]
    },
)

CONTAINER = obj(
    "name",
    "image",
    name=NAME,
    image=TEXT,
    command=array(TEXT),
    env=array(obj("name", name=VARIABLE, value=TEXT)),
    ports=array(obj("containerPort", name=PORT_NAME, containerPort=PORT)),
    resources=obj(limits=mapping(QUANTITY), requests=mapping(QUANTITY)),
    securityContext=obj(privileged=FLAG),
    volumeMounts=array(obj("name", "mountPath", name=NAME, mountPath=TEXT, readOnly=FLAG)),
)

VOLUME = obj(
    "name",
    name=NAME,
    emptyDir=obj(medium=TEXT, sizeLimit=QUANTITY),
    hostPath=obj("path", path=TEXT),
    persistentVolumeClaim=obj("claimName", claimName=NAME, readOnly=FLAG),
)

POD = obj(
    "metadata",
    "spec",
    metadata=obj(annotations=mapping(TEXT), labels=mapping(LABEL)),
    spec=obj(
        "containers",
        containers=array(CONTAINER, minItems=1),
        nodeSelector=mapping(LABEL),
        restartPolicy={"enum": ["Always", "OnFailure", "Never"]},
        serviceAccountName=NAME,
        volumes=array(VOLUME),
    ),
)

TASK = obj(
    "name",
    "replicas",
    "template",
    name=NAME,
    replicas=COUNT,
    minAvailable=COUNT,
    maxRetry=COUNT,
    policies=array(POLICY),
    template=POD,
)

JOB = obj(
    "apiVersion",
    "kind",
    "metadata",
    "spec",
    apiVersion={"const": "batch.volcano.sh/v1alpha1"},
    kind={"const": "Job"},
    metadata=obj("name", name=NAME),
    spec=obj(
        "tasks",
        schedulerName=NAME,
        queue=NAME,
        priorityClassName=NAME,
        maxRetry=COUNT,
        minAvailable=COUNT,
        plugins={"type": "object", "propertyNames": {"enum": ["env", "ssh", "svc"]}, **mapping(array(TEXT))},
        tasks=array(TASK, minItems=1),
    ),
)
