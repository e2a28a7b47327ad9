"""A namespace that enforces `restricted` admits every pod; some rules of ours go further than it."""

from __future__ import annotations

from tests.deploy.cluster import Cluster, containers, pod
from tests.deploy.pod_security import complaints

LAX = {
    "hostPID": True,
    "volumes": [{"name": "host", "hostPath": {"path": "/"}}],
    "containers": [{"name": "main"}],
}


def test_the_check_sees_a_lax_pod() -> None:
    assert complaints(LAX) == [
        "hostPID",
        "volume host",
        "main: allowPrivilegeEscalation",
        "main: drop ALL",
        "main: runAsNonRoot",
        "main: seccompProfile",
    ]


def test_every_pod_keeps_the_restricted_profile(cluster: Cluster) -> None:
    assert {one["metadata"]["name"]: complaints(pod(one)) for one in cluster.workloads()} == {
        one["metadata"]["name"]: [] for one in cluster.workloads()
    }


def test_the_namespace_enforces_it(cluster: Cluster) -> None:
    (namespace,) = cluster.all("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {one["metadata"].get("namespace") for one in cluster.objects if one != namespace} == {"twigserve"}


def test_no_pod_has_a_token_or_a_writable_root_or_the_default_account(cluster: Cluster) -> None:
    for workload in cluster.workloads():
        assert pod(workload)["automountServiceAccountToken"] is False
        account = cluster.get("ServiceAccount", pod(workload)["serviceAccountName"])
        assert account is not None
        assert account["automountServiceAccountToken"] is False
        for one in containers(workload):
            assert one["securityContext"]["readOnlyRootFilesystem"] is True, one["name"]


def test_user_ids_are_numeric_as_the_kubelet_needs_them_for_run_as_non_root(cluster: Cluster) -> None:
    assert all(pod(one)["securityContext"]["runAsUser"] > 0 for one in cluster.workloads())


def test_traffic_is_denied_unless_listed(cluster: Cluster) -> None:
    deny = cluster.get("NetworkPolicy", "default-deny")
    assert deny is not None
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
