"""deploy/k8s, as far as it can be checked without a cluster: schemas, settings, commands, probes, permissions."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from feature_atlas.cli import build_parser
from feature_atlas.messages import QUEUE, UNACKED
from feature_atlas.settings import Settings
from tests.deploy import compose, kubernetes
from tests.deploy.kubernetes import ALL, OVERLAYS

#: A spot node's notice on the clouds that give the shortest.
NOTICE = 30
_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
_POLICIES = {
    "type": "object", "additionalProperties": False,
    "properties": {
        "stabilizationWindowSeconds": {"type": "integer", "minimum": 0, "maximum": 3600},
        "selectPolicy": {"enum": ["Max", "Min", "Disabled"]},
        "policies": {"type": "array", "items": {
            "type": "object", "additionalProperties": False, "required": ["type", "value", "periodSeconds"],
            "properties": {
                "type": {"enum": ["Pods", "Percent"]}, "value": {"type": "integer", "minimum": 1},
                "periodSeconds": {"type": "integer", "minimum": 1, "maximum": 1800},
            },
        }},
    },
}  # fmt: skip
_NUMBERS = ("minReplicaCount", "maxReplicaCount", "idleReplicaCount", "pollingInterval", "cooldownPeriod")
#: The parts of KEDA's schema (keda.sh/v1alpha1) that a Redis list needs, and the scaler's own fields; nothing besides.
KEDA = {
    "ScaledObject": {
        "type": "object", "additionalProperties": False, "required": ["scaleTargetRef", "triggers"],
        "properties": {
            "scaleTargetRef": {**_STRINGS, "required": ["name"]},
            **{name: {"type": "integer", "minimum": 0} for name in _NUMBERS},
            "advanced": {"type": "object", "additionalProperties": False, "properties": {
                "horizontalPodAutoscalerConfig": {"type": "object", "additionalProperties": False, "properties": {
                    "behavior": {"type": "object", "additionalProperties": False,
                                 "properties": {"scaleUp": _POLICIES, "scaleDown": _POLICIES}},
                }},
            }},
            "triggers": {"type": "array", "minItems": 1, "items": {
                "type": "object", "additionalProperties": False, "required": ["type", "metadata"],
                "properties": {
                    "type": {"const": "redis"}, "authenticationRef": {**_STRINGS, "required": ["name"]},
                    "metadata": {
                        **_STRINGS, "required": ["address", "listName", "listLength"],
                        "propertyNames": {"enum": [
                            "address", "username", "listName", "listLength", "activationListLength", "databaseIndex",
                            "enableTLS",
                        ]},
                    },
                },
            }},
        },
    },
    "TriggerAuthentication": {
        "type": "object", "additionalProperties": False, "required": ["secretTargetRef"],
        "properties": {"secretTargetRef": {"type": "array", "minItems": 1, "items": {
            "type": "object", "additionalProperties": False, "required": ["parameter", "name", "key"],
            "properties": {"parameter": {"enum": ["username", "password", "tls", "ca"]},
                           "name": {"type": "string"}, "key": {"type": "string"}},
        }}},
    },
}  # fmt: skip


def validate(file: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "kubernetes_validate", "--strict", "--no-warn", str(file)]
    return subprocess.run(argv, capture_output=True, text=True)


@pytest.mark.parametrize("part", ALL)
def test_objects_follow_the_schemas_of_kubernetes(part: str, tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(kubernetes.text(part))
    done = validate(file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_check_notices_a_slip(tmp_path: Path) -> None:
    file = tmp_path / "slip.yaml"
    file.write_text(kubernetes.text("enqueue").replace("backoffLimit: 4", "backofLimit: 4"))
    assert validate(file).returncode != 0


@pytest.mark.parametrize("part", OVERLAYS)
def test_objects_of_keda_follow_its_schema(part: str) -> None:
    found = [row for row in kubernetes.manifests(part) if row["apiVersion"] == "keda.sh/v1alpha1"]
    assert {row["kind"] for row in found} == set(KEDA)
    for row in found:
        jsonschema.validate(row["spec"], KEDA[row["kind"]])


@pytest.mark.parametrize("part", OVERLAYS)
def test_scaling_looks_at_what_waits_and_at_what_is_in_hand(part: str) -> None:
    spec = kubernetes.one(part, "ScaledObject", "worker")["spec"]
    assert [row["metadata"]["listName"] for row in spec["triggers"]] == [QUEUE, UNACKED]
    assert spec["minReplicaCount"] == 0 < spec["maxReplicaCount"]
    assert spec["scaleTargetRef"]["name"] == kubernetes.one(part, "Deployment", "worker")["metadata"]["name"]
    # Replicas belong to the autoscaler: applying the manifests again must not take workers away
    assert "replicas" not in kubernetes.one(part, "Deployment", "worker")["spec"]
    service = kubernetes.one(part, "Service", "broker")["metadata"]
    address = f"{service['name']}.{service['namespace']}.svc:6379"
    assert {row["metadata"]["address"] for row in spec["triggers"]} == {address}
    auth = {row["authenticationRef"]["name"] for row in spec["triggers"]}
    assert auth == {kubernetes.one(part, "TriggerAuthentication", "broker")["metadata"]["name"]}


SECRETS = {
    "broker": {name: f"{name}-of-the-test" for name in compose.secrets() if name.startswith("VALKEY")},
    "store-worker": {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "SK"},
    "store-producer": {"AWS_ACCESS_KEY_ID": "AK2", "AWS_SECRET_ACCESS_KEY": "SK2"},
}


@pytest.mark.parametrize("part", ALL)
def test_every_variable_is_a_setting_that_loads_and_every_command_is_one(part: str) -> None:
    seen = 0
    for pod in kubernetes.pods(part).values():
        for container in pod["spec"]["containers"]:
            environ = kubernetes.environ(part, container, SECRETS)
            assert not re.search(r"\$\(", " ".join(environ.values())), "a variable is used before it is known"
            if not container["image"].startswith("feature-atlas"):
                continue
            seen += 1
            assert Settings.unknown(environ) == []
            settings = Settings.load(environ)
            assert re.fullmatch(r"redis://\w+:VALKEY_\w+_PASSWORD-of-the-test@broker:6379/0", settings.broker)
            assert callable(build_parser().parse_args(container["args"]).run)
    assert seen == 1


@pytest.mark.parametrize("part", ALL)
def test_secrets_are_only_named(part: str) -> None:
    assert not [row for row in kubernetes.manifests(part) if row["kind"] == "Secret"]
    unknown = [pair for pair in kubernetes.referenced(part) if pair[1] not in SECRETS.get(pair[0], {})]
    assert not unknown
    written = re.findall(r"name: \w*(?:PASSWORD|SECRET|(?<!VAL)KEY)\w*\n *value: .+", kubernetes.text(part))
    assert not written


@pytest.mark.parametrize("part", ALL)
def test_pods_are_hardened(part: str) -> None:
    for name, pod in kubernetes.pods(part).items():
        spec = pod["spec"]
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True and security["runAsUser"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }, name  # fmt: skip
            assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+[\w.-]*", container["image"]), container["image"]
            assert container["resources"]["requests"] and container["resources"]["limits"]["memory"], name
        assert not [volume for volume in spec.get("volumes", ()) if "hostPath" in volume], name


@pytest.mark.parametrize("part", OVERLAYS)
def test_a_worker_may_end_in_order_within_a_spot_nodes_notice(part: str) -> None:
    pod = kubernetes.one(part, "Deployment", "worker")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    grace = Settings.load(kubernetes.environ(part, container, SECRETS)).grace
    assert pause + grace <= NOTICE
    assert pod["terminationGracePeriodSeconds"] >= pause + grace + 15 + 10


@pytest.mark.parametrize("part", OVERLAYS)
def test_nobody_reaches_the_pods(part: str) -> None:
    policies = {
        row["metadata"]["name"]: row["spec"]
        for row in kubernetes.manifests(part)
        if row["kind"] == "NetworkPolicy"
    }  # fmt: skip
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    blocks = [peer["ipBlock"] for rule in policies["worker"]["egress"] for peer in rule["to"] if "ipBlock" in peer]
    assert blocks == [{"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}]
    assert "egress" not in policies["broker"]


def test_gpus_are_limited_and_spot_nodes_tolerated() -> None:
    cpu, gpu = (kubernetes.one(part, "Deployment", "worker")["spec"]["template"]["spec"] for part in OVERLAYS)
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in str(cpu)
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= {row["key"] for row in gpu["tolerations"]}


@pytest.mark.parametrize("part", OVERLAYS)
def test_a_drained_node_does_not_take_all_workers(part: str) -> None:
    budget = kubernetes.one(part, "PodDisruptionBudget", "worker")["spec"]
    labels = kubernetes.one(part, "Deployment", "worker")["spec"]["template"]["metadata"]["labels"]
    assert budget["selector"]["matchLabels"] == labels and budget["maxUnavailable"] == "25%"


def test_labels_and_selectors_meet() -> None:
    for part in OVERLAYS:
        pods = kubernetes.pods(part)
        service = kubernetes.one(part, "Service", "broker")
        assert service["spec"]["selector"] == pods["broker"]["metadata"]["labels"]
        volumes: list[dict[str, Any]] = pods["broker"]["spec"]["volumes"]
        config = next(volume["configMap"]["name"] for volume in volumes if "configMap" in volume)
        assert kubernetes.one(part, "ConfigMap", config)["data"]["start"].startswith("#!/bin/sh")


def test_files_are_yaml_with_one_style() -> None:
    for file in kubernetes.FOLDER.rglob("*.yaml"):
        assert list(yaml.safe_load_all(file.read_text())), file


def test_a_worker_on_cpus_takes_as_many_threads_as_it_requests() -> None:
    pod = kubernetes.one("overlays/cpu", "Deployment", "worker")["spec"]["template"]["spec"]
    (worker,) = pod["containers"]
    threads = {each["name"]: each.get("value") for each in worker["env"]}["OMP_NUM_THREADS"]
    assert threads == worker["resources"]["requests"]["cpu"]
