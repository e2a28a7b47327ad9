"""What schemas say of the manifests, and what they do not see: selectors, limits, numbers, deadlines."""

from __future__ import annotations

import json

import kubernetes_validate
import pytest

from service.settings import GatewaySettings, WorkerSettings, unknown_variables
from tests.deploy.cluster import OVERLAYS, Cluster, Object, containers, environment, find, pod, render

KUBERNETES = "1.36.0"
CUSTOM = {"ScaledObject", "TriggerAuthentication", "PodMonitor", "ServiceMonitor", "PrometheusRule"}
BARE = ("base", "overlays/cpu-demo", "overlays/gpu", "overlays/gpu-fetched", "overlays/redis-managed")
UNITS = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 1e3, "M": 1e6, "G": 1e9}


def test_every_object_fits_its_schema() -> None:
    """Each only once, however many overlays hold it: a schema takes long to load."""
    known = {json.dumps(one): one for overlay in OVERLAYS for one in render(overlay).objects}
    for one in known.values():
        if one["kind"] not in CUSTOM:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)


@pytest.mark.parametrize("overlay", BARE)
def test_applies_to_a_cluster_without_custom_resources(overlay: str) -> None:
    assert not render(overlay).all(*CUSTOM)


def test_names_are_unique(cluster: Cluster) -> None:
    names = [(one["kind"], one["metadata"]["name"]) for one in cluster.objects]
    assert len(names) == len(set(names))


def test_every_object_says_what_it_is_part_of(cluster: Cluster) -> None:
    assert {one["metadata"]["labels"]["app.kubernetes.io/part-of"] for one in cluster.objects} == {
        "twigserve"
    }


def test_workloads_select_their_own_pods_and_no_others(cluster: Cluster) -> None:
    for workload in cluster.workloads():
        assert cluster.selected(workload["spec"]["selector"]["matchLabels"]) == [workload]


def selectors(one: Object) -> list[Object]:
    if one["kind"] == "Service":
        return [one["spec"]["selector"]]
    return [
        labels for labels in find(one, "matchLabels") if any("app.kubernetes.io" in key for key in labels)
    ]


def test_every_selector_finds_a_workload(cluster: Cluster) -> None:
    kinds = ("Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor", "Deployment")
    for one in cluster.all(*kinds):
        for labels in selectors(one):
            assert len(cluster.selected(labels)) == 1, (one["metadata"]["name"], labels)


def test_service_monitors_find_a_service(cluster: Cluster) -> None:
    for monitor in cluster.all("ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (service,) = [one for one in cluster.all("Service") if wanted <= one["metadata"]["labels"].items()]
        names = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= names


def amount(quantity: str | int) -> float:
    text = str(quantity)
    unit = next((unit for unit in UNITS if text.endswith(unit)), "")
    return float(text.removesuffix(unit)) * UNITS.get(unit, 1)


def test_requests_stay_within_limits(cluster: Cluster) -> None:
    for workload in cluster.workloads():
        for one in containers(workload):
            requests, limits = one["resources"]["requests"], one["resources"]["limits"]
            assert {"cpu", "memory"} <= requests.keys() <= limits.keys()
            assert all(amount(requests[name]) <= amount(limits[name]) for name in requests), one["name"]


def test_autoscalers_have_a_target_and_a_range(cluster: Cluster) -> None:
    for one in cluster.all("HorizontalPodAutoscaler"):
        spec = one["spec"]
        target = cluster.get(spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])
        assert 1 <= spec["minReplicas"] <= spec["maxReplicas"]
        assert target is not None
        assert "replicas" not in target["spec"]
    for one in cluster.all("ScaledObject"):
        target = cluster.get("Deployment", one["spec"]["scaleTargetRef"]["name"])
        assert 1 <= one["spec"]["minReplicaCount"] <= one["spec"]["maxReplicaCount"]
        assert target is not None
        assert "replicas" not in target["spec"]


def test_one_disruption_budget_a_stateless_workload(cluster: Cluster) -> None:
    budgets = {one["metadata"]["name"]: one["spec"] for one in cluster.all("PodDisruptionBudget")}
    assert budgets.keys() == {one["metadata"]["name"] for one in cluster.all("Deployment")}
    assert all(spec["maxUnavailable"] == 1 for spec in budgets.values())


def test_pods_spread_over_nodes_and_zones(cluster: Cluster) -> None:
    for one in cluster.all("Deployment"):
        keys = {rule["topologyKey"] for rule in pod(one)["topologySpreadConstraints"]}
        assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}


def drain_s(cluster: Cluster, name: str) -> float:
    """What the process allows itself after SIGTERM: the variable, else the setting's default."""
    field, settings = {
        "twigserve-gateway": ("shutdown_s", GatewaySettings),
        "twigserve-worker": ("drain_s", WorkerSettings),
    }[name]
    workload = cluster.get("Deployment", name)
    assert workload is not None
    prefix = str(settings.model_config["env_prefix"])
    value = environment(cluster, workload).get((prefix + field).upper())
    return float(settings.model_fields[field].default if value is None else value)


@pytest.mark.parametrize("name", ["twigserve-gateway", "twigserve-worker"])
def test_pods_are_given_longer_than_they_take_to_drain(cluster: Cluster, name: str) -> None:
    """A generation ends at its deadline, so draining that long means that none is ever cut."""
    workload = cluster.get("Deployment", name)
    assert workload is not None
    (main,) = pod(workload)["containers"]
    sleep, pause_s = main["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    assert drain_s(cluster, name) > GatewaySettings.model_fields["request_timeout_s"].default
    assert pod(workload)["terminationGracePeriodSeconds"] > float(pause_s) + drain_s(cluster, name)


def test_settings_are_known_and_nothing_adds_unknown_ones(cluster: Cluster) -> None:
    """Service links would add TWIGSERVE_GATEWAY_PORT=tcp://... and the process would refuse to start."""
    for workload in cluster.workloads():
        assert unknown_variables(environment(cluster, workload)) == []
        assert pod(workload)["enableServiceLinks"] is False


@pytest.mark.parametrize("overlay", ["overlays/gpu", "overlays/gpu-autoscaled", "overlays/gpu-fetched"])
def test_gpu_workers_have_one_gpu_the_image_for_it_and_the_model(overlay: str) -> None:
    """Caught once: the base had renamed the image, so that the overlay's own name matched nothing."""
    cluster = render(overlay)
    worker = cluster.get("Deployment", "twigserve-worker")
    assert worker is not None
    (main,) = pod(worker)["containers"]
    assert (
        main["resources"]["limits"]["nvidia.com/gpu"]
        == main["resources"]["requests"]["nvidia.com/gpu"]
        == "1"
    )
    assert main["image"].startswith("twigserve-worker-cuda:")
    mounts = {mount["name"]: mount["mountPath"] for mount in main["volumeMounts"]}
    variables = environment(cluster, worker)
    assert str(variables["TWIGSERVE_WORKER_VLM"]).startswith(mounts["models"] + "/")
    assert variables["TWIGSERVE_WORKER_DEVICE"] == "cuda"


def test_the_settings_built_from_the_variables_are_valid(cluster: Cluster) -> None:
    for name, settings in (("twigserve-gateway", GatewaySettings), ("twigserve-worker", WorkerSettings)):
        workload = cluster.get("Deployment", name)
        assert workload is not None
        prefix = str(settings.model_config["env_prefix"])
        values = {
            key.removeprefix(prefix).lower(): value
            for key, value in environment(cluster, workload).items()
            if key.startswith(prefix)
        }
        settings.model_validate(values)


def test_fetched_models_come_where_the_worker_looks_and_are_checked() -> None:
    """The same image brings them, into the same volume, writable by its group and for nobody else."""
    cluster = render("overlays/gpu-fetched")
    worker = cluster.get("Deployment", "twigserve-worker")
    assert worker is not None
    (main,) = pod(worker)["containers"]
    variables = environment(cluster, worker)
    fetching = pod(worker)["initContainers"]
    places = {one["args"][2] for one in fetching}
    assert places == {variables["TWIGSERVE_WORKER_VLM"], variables["TWIGSERVE_WORKER_TWIG"]}
    (sums,) = [volume["configMap"]["name"] for volume in pod(worker)["volumes"] if volume["name"] == "sums"]
    config = cluster.get("ConfigMap", sums)
    assert config is not None
    for one in fetching:
        assert one["image"] == main["image"]
        command, address, _, option, file = one["args"]
        assert (command, option) == ("fetch", "--sums")
        assert file.removeprefix("/etc/models/") in config["data"]
        assert address.strip("$()") in config["data"]
    assert pod(worker)["securityContext"]["fsGroup"] == pod(worker)["securityContext"]["runAsGroup"]
