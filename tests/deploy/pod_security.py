"""Kubernetes' Pod Security Standard `restricted`, as far as a pod template can break it.

Source: the published standard (baseline and restricted). Returns complaints, one a broken rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

HOST = ("hostNetwork", "hostPID", "hostIPC")
VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SECCOMP = {"RuntimeDefault", "Localhost"}


def complaints(pod: dict[str, Any]) -> list[str]:
    return [
        *_pod(pod),
        *(f"{one['name']}: {what}" for one in _containers(pod) for what in _container(pod, one)),
    ]


def _containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", ()), *pod.get("ephemeralContainers", ()), *pod["containers"]]


def _pod(pod: dict[str, Any]) -> Iterator[str]:
    yield from (name for name in HOST if pod.get(name))
    for volume in pod.get("volumes", ()):
        if set(volume) - {"name"} - VOLUMES:
            yield f"volume {volume['name']}"
    if pod.get("securityContext", {}).get("sysctls"):
        yield "sysctls"


def _container(pod: dict[str, Any], container: dict[str, Any]) -> Iterator[str]:
    own = container.get("securityContext", {})
    merged = pod.get("securityContext", {}) | own
    capabilities = own.get("capabilities", {})
    rules = {
        "privileged": not own.get("privileged"),
        "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
        "drop ALL": "ALL" in capabilities.get("drop", ()),
        "added capabilities": set(capabilities.get("add", ())) <= {"NET_BIND_SERVICE"},
        "runAsNonRoot": merged.get("runAsNonRoot") is True,
        "runAsUser": merged.get("runAsUser") != 0,
        "seccompProfile": merged.get("seccompProfile", {}).get("type") in SECCOMP,
        "procMount": own.get("procMount", "Default") == "Default",
        "hostPort": not any(port.get("hostPort") for port in container.get("ports", ())),
    }
    yield from (name for name, kept in rules.items() if not kept)
