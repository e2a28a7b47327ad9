"""One overlay as `kubectl kustomize` renders it, and the questions the tests ask of it.

Knows Kubernetes' shapes, nothing of what our manifests should hold.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

K8S = Path(__file__).resolve().parents[2] / "k8s"
OVERLAYS = (
    "base",
    *sorted(f"overlays/{path.name}" for path in (K8S / "overlays").iterdir() if path.is_dir()),
)

Object = dict[str, Any]


@dataclass(frozen=True)
class Cluster:
    overlay: str
    objects: tuple[Object, ...]

    def all(self, *kinds: str) -> list[Object]:
        return [one for one in self.objects if one["kind"] in kinds]

    def get(self, kind: str, name: str) -> Object | None:
        return next((one for one in self.all(kind) if one["metadata"]["name"] == name), None)

    def workloads(self) -> list[Object]:
        return self.all("Deployment", "StatefulSet", "DaemonSet", "Job")

    def selected(self, labels: dict[str, str]) -> list[Object]:
        """The workloads whose pods carry these labels."""
        return [one for one in self.workloads() if labels.items() <= pod_labels(one).items()]

    def chosen(self, selector: Object) -> list[Object]:
        """The workloads whose pods a label selector picks, by labels or by expressions."""
        return [
            one
            for one in self.selected(selector.get("matchLabels", {}))
            if all(_fits(rule, pod_labels(one)) for rule in selector.get("matchExpressions", ()))
        ]


def _fits(rule: Object, labels: dict[str, str]) -> bool:
    assert rule["operator"] == "In", rule
    return labels.get(rule["key"]) in rule["values"]


def pod(workload: Object) -> Object:
    spec: Object = workload["spec"]["template"]["spec"]
    return spec


def pod_labels(workload: Object) -> dict[str, str]:
    labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def containers(workload: Object) -> list[Object]:
    return [*pod(workload).get("initContainers", ()), *pod(workload)["containers"]]


def port_names(workload: Object) -> set[str | int]:
    """Every name and number by which a port of these pods may be meant."""
    ports = [port for one in containers(workload) for port in one.get("ports", ())]
    return {port["containerPort"] for port in ports} | {port["name"] for port in ports if "name" in port}


def find(value: Any, key: str) -> Iterator[Any]:
    """Every value under `key`, at any depth."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key:
                yield inner
            yield from find(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from find(inner, key)


def environment(cluster: Cluster, workload: Object) -> dict[str, str | None]:
    """The variables of the main container; None where the value comes from a Secret."""
    (main,) = pod(workload)["containers"]
    values: dict[str, str | None] = {}
    for source in main.get("envFrom", ()):
        config = cluster.get("ConfigMap", source["configMapRef"]["name"])
        assert config is not None, source
        values |= config["data"]
    return values | {one["name"]: one.get("value") for one in main.get("env", ())}


@cache
def render(overlay: str) -> Cluster:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl on this machine")
    done = subprocess.run(
        [kubectl, "kustomize", str(K8S / overlay)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return Cluster(overlay, tuple(yaml.safe_load_all(done.stdout)))
