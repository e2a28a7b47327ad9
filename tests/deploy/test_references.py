"""Whatever a manifest names exists in the same rendering, or among the Secrets that operators make."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from tests.deploy.cluster import K8S, Cluster, Object, containers, find, pod, port_names


def given_secrets() -> dict[str, set[str]]:
    documents = yaml.safe_load_all((K8S / "base/secrets.example.yaml").read_text())
    return {one["metadata"]["name"]: set(one["stringData"]) for one in documents}


def secrets(cluster: Cluster) -> dict[str, set[str]]:
    """name -> keys, of the rendering and of the example."""
    rendered = cluster.all("Secret")
    generated = {
        one["metadata"]["name"]: set(one.get("data", {})) | set(one.get("stringData", {})) for one in rendered
    }
    return given_secrets() | generated


def secret_references(one: Object) -> Iterator[tuple[str, str | None]]:
    """(name, key); no key where the whole Secret is meant."""
    yield from ((ref["name"], ref["key"]) for ref in find(one, "secretKeyRef"))
    yield from ((ref["name"], ref["key"]) for refs in find(one, "secretTargetRef") for ref in refs)
    yield from ((name, None) for name in find(one, "secretName"))


def test_secrets_and_their_keys_exist(cluster: Cluster) -> None:
    known = secrets(cluster)
    for one in cluster.objects:
        for name, key in secret_references(one):
            assert name in known, name
            assert key is None or key in known[name], (name, key)


def test_config_maps_exist(cluster: Cluster) -> None:
    names = {one["metadata"]["name"] for one in cluster.all("ConfigMap")}
    for workload in cluster.workloads():
        wanted = {ref["name"] for key in ("configMapRef", "configMap") for ref in find(pod(workload), key)}
        assert wanted <= names


def test_volumes_are_declared_used_and_claimed(cluster: Cluster) -> None:
    claims = {one["metadata"]["name"] for one in cluster.all("PersistentVolumeClaim")}
    for workload in cluster.workloads():
        templates = workload["spec"].get("volumeClaimTemplates", ())
        declared = {volume["name"] for volume in pod(workload).get("volumes", ())}
        declared |= {template["metadata"]["name"] for template in templates}
        mounted = {mount["name"] for one in containers(workload) for mount in one.get("volumeMounts", ())}
        assert declared == mounted, workload["metadata"]["name"]
        assert set(find(pod(workload), "claimName")) <= claims


def test_every_pod_of_ours_may_write_to_tmp(cluster: Cluster) -> None:
    for workload in cluster.all("Deployment"):
        (main,) = pod(workload)["containers"]
        (tmp,) = [mount["name"] for mount in main["volumeMounts"] if mount["mountPath"] == "/tmp"]
        (volume,) = [volume for volume in pod(workload)["volumes"] if volume["name"] == tmp]
        assert "emptyDir" in volume


def test_services_name_ports_of_their_pods(cluster: Cluster) -> None:
    for service in cluster.all("Service"):
        (workload,) = cluster.selected(service["spec"]["selector"])
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= port_names(workload)


def test_probes_name_ports_of_their_container(cluster: Cluster) -> None:
    for workload in cluster.workloads():
        for one in pod(workload)["containers"]:
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= one.keys()
            ports = {port["name"] for port in one["ports"]}
            assert {probe["port"] for probe in find(one, "httpGet")} <= ports


def test_network_policies_and_pod_monitors_name_ports_of_the_pods(cluster: Cluster) -> None:
    for policy in cluster.all("NetworkPolicy"):
        for rule in policy["spec"].get("ingress", ()):
            (workload,) = cluster.selected(policy["spec"]["podSelector"]["matchLabels"])
            assert {port["port"] for port in rule["ports"]} <= port_names(workload)
    for monitor in cluster.all("PodMonitor"):
        (workload,) = cluster.selected(monitor["spec"]["selector"]["matchLabels"])
        assert {end["port"] for end in monitor["spec"]["podMetricsEndpoints"]} <= port_names(workload)


def allowed(cluster: Cluster, client: str, server: str) -> set[str | int]:
    """The ports on which the policies let pods of one Deployment reach those of another, on both ends."""
    source, target = cluster.get("Deployment", client), cluster.get("StatefulSet", server)
    assert source is not None
    assert target is not None
    out = _ports(cluster, source, "egress", "to", target)
    into = _ports(cluster, target, "ingress", "from", source)
    return _numbers(target, out) & _numbers(target, into)


def _ports(cluster: Cluster, subject: Object, way: str, end: str, peer: Object) -> set[str | int]:
    return {
        port["port"]
        for policy in cluster.all("NetworkPolicy")
        if subject in _subjects(cluster, policy)
        for rule in policy["spec"].get(way, ())
        for one in rule[end]
        if "podSelector" in one and peer in cluster.selected(one["podSelector"]["matchLabels"])
        for port in rule["ports"]
    }


def _subjects(cluster: Cluster, policy: Object) -> list[Object]:
    return cluster.chosen(policy["spec"]["podSelector"])


def _numbers(workload: Object, ports: set[str | int]) -> set[str | int]:
    own = [port for one in pod(workload)["containers"] for port in one["ports"]]
    names = {port["name"]: port["containerPort"] for port in own}
    return {names.get(str(port), port) for port in ports}


def test_policies_let_both_sides_reach_redis_and_redis_nobody(cluster: Cluster) -> None:
    if cluster.get("StatefulSet", "twigserve-redis") is None:
        return  # Redis is outside: test_policies_let_both_sides_reach_a_redis_outside
    assert allowed(cluster, "twigserve-gateway", "twigserve-redis") == {6379}
    assert allowed(cluster, "twigserve-worker", "twigserve-redis") == {6379}
    policy = cluster.get("NetworkPolicy", "twigserve-redis")
    assert policy is not None
    assert "egress" not in policy["spec"]


def test_policies_let_both_sides_reach_a_redis_outside(cluster: Cluster) -> None:
    if cluster.get("StatefulSet", "twigserve-redis") is not None:
        return
    for name in ("twigserve-gateway", "twigserve-worker"):
        policy = cluster.get("NetworkPolicy", name)
        assert policy is not None
        (rule,) = policy["spec"]["egress"]
        assert "ipBlock" in rule["to"][0]
        assert not [one for one in cluster.objects if one["metadata"]["name"] == "twigserve-redis"]


def test_names_are_looked_up_by_those_that_need_to_alone(cluster: Cluster) -> None:
    """A port 53 for everybody would be Redis's only way out."""
    policy = cluster.get("NetworkPolicy", "allow-dns")
    assert policy is not None
    assert _subjects(cluster, policy) == cluster.all("Deployment")
    (rule,) = policy["spec"]["egress"]
    assert {(port["protocol"], port["port"]) for port in rule["ports"]} == {("UDP", 53), ("TCP", 53)}


def sources(cluster: Cluster, workload: Object) -> set[tuple[str, str | int]]:
    """(namespace, or component of ours, and port) that may connect to these pods."""
    found = set()
    for policy in cluster.all("NetworkPolicy"):
        if workload not in _subjects(cluster, policy):
            continue
        for rule in policy["spec"].get("ingress", ()):
            for peer in rule["from"]:
                labels = next(iter(peer.values()))["matchLabels"]
                name = labels.get("kubernetes.io/metadata.name") or labels["app.kubernetes.io/component"]
                found |= {(name, port["port"]) for port in rule["ports"]}
    return found


def test_every_flow_that_is_needed_is_allowed_and_no_other(cluster: Cluster) -> None:
    scraped = bool(cluster.all("PodMonitor"))
    wanted = {
        "twigserve-gateway": {("ingress-nginx", "http")} | ({("monitoring", "http")} if scraped else set()),
        "twigserve-worker": {("monitoring", "metrics")} if scraped else set(),
        "twigserve-redis": {("gateway", "redis"), ("worker", "redis")}
        | ({("keda", "redis")} if cluster.all("ScaledObject") else set()),
    }
    for workload in cluster.workloads():
        name = workload["metadata"]["name"]
        assert sources(cluster, workload) == wanted[name], name
