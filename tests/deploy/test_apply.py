"""What only an API server refuses: keys given twice, fields that may not change, objects too large."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.cluster import K8S, OVERLAYS, Cluster, Object, environment, find, pod, render

# Lists that server-side apply reads as maps, and what their keys are (x-kubernetes-list-map-keys of the API).
MAP_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "ownerReferences": ("uid",),
}
# `port` of a container; a Service's is told by (port, protocol).
PORT_KEYS = (("containerPort", "protocol"), ("port", "protocol"))
# What `kubectl apply` writes into an annotation must fit: the API server's limit for all of them together.
ANNOTATION_BYTES = 262_144
LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
# Kinds without a namespace of their own.
CLUSTER_WIDE = {"Namespace"}


def lists(value: Any) -> Iterator[tuple[str, list[Any]]]:
    """Every list in an object, under its field's name."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, list):
                yield name, inner
            yield from lists(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from lists(inner)


def keys_of(name: str, items: list[Any]) -> list[tuple[Any, ...]]:
    if name in MAP_KEYS:
        return [tuple(one.get(key) for key in MAP_KEYS[name]) for one in items]
    if name == "ports":
        number, protocol = next((keys for keys in PORT_KEYS if keys[0] in items[0]), PORT_KEYS[1])
        return [(one.get(number), one.get(protocol, "TCP")) for one in items]
    return []


def test_no_key_is_given_twice(cluster: Cluster) -> None:
    """kubectl's own merging hides them; server-side apply refuses the whole object."""
    for one in cluster.objects:
        for name, items in lists(one):
            keys = keys_of(name, items)
            assert len(set(keys)) == len(keys), (one["metadata"]["name"], name, keys)


def test_port_names_are_told_apart_and_short_enough(cluster: Cluster) -> None:
    for workload in cluster.workloads():
        names = [port["name"] for ports in find(pod(workload), "ports") for port in ports]
        assert len(set(names)) == len(names)
        assert all(len(name) <= 15 for name in names)


def test_everything_is_in_the_one_namespace_that_is_made(cluster: Cluster) -> None:
    (namespace,) = cluster.all("Namespace")
    for one in cluster.objects:
        wanted = None if one["kind"] in CLUSTER_WIDE else namespace["metadata"]["name"]
        assert one["metadata"].get("namespace") == wanted, one["metadata"]["name"]


def test_names_and_labels_are_ones_that_the_api_takes(cluster: Cluster) -> None:
    for one in cluster.objects:
        assert NAME.fullmatch(one["metadata"]["name"])
        for labels in (*find(one, "labels"), *find(one, "matchLabels")):
            if isinstance(labels, dict):
                assert all(LABEL.fullmatch(str(value)) for value in labels.values()), labels


def test_every_object_is_small_enough_for_a_plain_apply(cluster: Cluster) -> None:
    for one in cluster.objects:
        assert len(json.dumps(one)) < ANNOTATION_BYTES, one["metadata"]["name"]


def fixed(one: Object) -> Any:
    """What the API refuses to change once the object is there."""
    spec = one.get("spec", {})
    if one["kind"] == "StatefulSet":
        free = ("replicas", "ordinals", "template", "updateStrategy", "minReadySeconds")
        return {name: value for name, value in spec.items() if name not in free}
    if one["kind"] == "PersistentVolumeClaim":
        return {name: value for name, value in spec.items() if name != "resources"}
    if one["kind"] == "Deployment":
        return spec["selector"]
    return spec.get("clusterIP")


@pytest.mark.parametrize("kind", ["StatefulSet", "Deployment", "PersistentVolumeClaim", "Service"])
def test_one_overlay_can_be_applied_after_another(kind: str) -> None:
    """Caught once: the demo asked for a smaller volume, so that no other overlay could follow it."""
    seen: dict[str, Any] = {}
    for overlay in OVERLAYS:
        for one in render(overlay).all(kind):
            name = one["metadata"]["name"]
            assert seen.setdefault(name, fixed(one)) == fixed(one), (overlay, name)


@pytest.mark.parametrize("overlay", ["gpu-autoscaled", "cpu-demo"])
def test_a_redis_from_outside_goes_with_every_overlay(overlay: str, tmp_path: Path) -> None:
    """As in deployment.md: an overlay of one's own. Caught once: on cpu-demo its own Secret stayed."""
    parts = {"resources": f"overlays/{overlay}", "components": "components/redis-managed"}
    lines = [f"{key}: [{os.path.relpath(K8S / path, tmp_path.resolve())}]" for key, path in parts.items()]
    (tmp_path / "kustomization.yaml").write_text("\n".join(lines))
    cluster = render(str(tmp_path))
    for scaler in cluster.all("ScaledObject"):
        assert [trigger["type"] for trigger in scaler["spec"]["triggers"]] == ["prometheus"]
    # Of the Redis inside nothing is left, nor anything that would look for it.
    assert "twigserve-redis." not in json.dumps(cluster.objects)
    assert not [one for one in cluster.objects if one["metadata"]["name"].startswith("twigserve-redis")]
    for name in ("twigserve-gateway", "twigserve-worker"):
        workload = cluster.get("Deployment", name)
        assert workload is not None
        assert environment(cluster, workload)["TWIGSERVE_REDIS_URL"] is None  # from the Secret


def test_a_redis_from_outside_keeps_the_overlays_own_secret(tmp_path: Path) -> None:
    parts = {"resources": "base", "components": "components/redis-managed"}
    lines = [f"{key}: [{os.path.relpath(K8S / path, tmp_path.resolve())}]" for key, path in parts.items()]
    lines += ["secretGenerator: [{name: twigserve-redis, literals: ['url=redis://elsewhere:6379']}]"]
    (tmp_path / "kustomization.yaml").write_text("\n".join(lines))
    (secret,) = render(str(tmp_path)).all("Secret")
    assert set(secret["data"]) == {"url"}


def test_evictions_do_not_wait_for_pods_that_are_not_ready(cluster: Cluster) -> None:
    for one in cluster.all("PodDisruptionBudget"):
        assert one["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
