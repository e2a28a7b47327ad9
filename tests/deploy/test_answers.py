"""The paths, ports and metrics that manifests and load balancers name are those of the real processes."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, start_http_server

from service.app import create_app, max_body_bytes
from service.cli.probes import check_gateway, check_worker
from service.metrics import GatewayMetrics, WorkerMetrics
from service.probe import worker_problem
from service.protocol import Keys
from service.settings import GatewaySettings, RedisSettings, WorkerSettings
from tests.deploy.cluster import Cluster, find, pod, render

INSIDE = {"/livez", "/readyz", "/metrics"}


@pytest.fixture
def app(redis_settings: RedisSettings) -> FastAPI:
    return create_app(GatewaySettings(redis=redis_settings))


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
    ):
        yield client


def main_container(cluster: Cluster, name: str) -> dict[str, object]:
    workload = cluster.get("Deployment", name)
    assert workload is not None
    (main,) = pod(workload)["containers"]
    assert isinstance(main, dict)
    return main


async def test_probes_and_scrapes_are_answered(client: httpx.AsyncClient) -> None:
    cluster = render("overlays/monitoring")
    main = main_container(cluster, "twigserve-gateway")
    paths = {probe["path"] for probe in find(main, "httpGet")} | {
        end["path"] for one in cluster.all("ServiceMonitor") for end in one["spec"]["endpoints"]
    }
    assert {path.partition("?")[0] for path in paths} == INSIDE
    # There is no worker here, which must take no gateway out of the Service.
    assert {path: (await client.get(path)).status_code for path in paths} == dict.fromkeys(paths, 200)
    assert (await client.get("/readyz")).status_code == 503


def test_gateways_stay_in_the_service_when_all_workers_are_away(cluster: Cluster) -> None:
    """Caught once: every gateway unready for want of a worker, so that clients got the ingress's bare 503."""
    readiness = main_container(cluster, "twigserve-gateway")["readinessProbe"]
    assert isinstance(readiness, dict)
    assert readiness["httpGet"]["path"] == "/readyz?without_workers=true"


async def test_the_ingress_offers_every_public_path_and_none_of_the_others(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    (ingress,) = render("base").all("Ingress")
    rules = [rule for paths in find(ingress, "paths") for rule in paths]

    def offered(path: str) -> bool:
        return any(
            path == rule["path"]
            or (rule["pathType"] == "Prefix" and path.startswith(rule["path"].rstrip("/") + "/"))
            for rule in rules
        )

    page = await client.get("/")
    linked = {f"/{link.lstrip('/.')}" for link in re.findall(r'(?:src|href)="([^"#:]+)"', page.text)}
    public = (set(app.openapi()["paths"]) | linked | {"/", "/docs", "/openapi.json"}) - INSIDE
    assert [path for path in sorted(public) if not offered(path)] == []
    assert [path for path in INSIDE if offered(path)] == []


def test_ports_are_those_the_processes_listen_on(cluster: Cluster) -> None:
    ports = {
        name: [port["containerPort"] for port in main_container(cluster, name)["ports"]]  # type: ignore[attr-defined]
        for name in ("twigserve-gateway", "twigserve-worker")
    }
    assert ports["twigserve-gateway"] == [GatewaySettings.model_fields["port"].default]
    assert ports["twigserve-worker"] == [WorkerSettings.model_fields["metrics_port"].default]


def test_check_asks_the_default_ports() -> None:
    asked = {
        check: inspect.signature(check).parameters["url"].default for check in (check_gateway, check_worker)
    }
    assert asked[check_gateway].endswith(f":{GatewaySettings.model_fields['port'].default}")
    assert asked[check_worker].endswith(f":{WorkerSettings.model_fields['metrics_port'].default}/metrics")


def test_the_worker_probe_follows_the_main_loop() -> None:
    metrics = WorkerMetrics(layers=2)
    server, thread = start_http_server(0, "127.0.0.1", metrics.registry)
    try:
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        metrics.last_round.set_to_current_time()
        assert worker_problem(url, 60) is None
        metrics.last_round.set(0)
        assert "not turned" in str(worker_problem(url, 60))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_body_limits_leave_the_refusal_to_the_gateway() -> None:
    (ingress,) = render("base").all("Ingress")
    size = ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"]
    limit = max_body_bytes(GatewaySettings())
    assert limit < int(size.removesuffix("m")) * 2**20 < 1.1 * limit


def test_the_ingress_waits_longer_than_a_gateway_and_does_not_buffer() -> None:
    (ingress,) = render("base").all("Ingress")
    prefix = "nginx.ingress.kubernetes.io/"
    annotations = {
        key.removeprefix(prefix): value for key, value in ingress["metadata"]["annotations"].items()
    }
    assert annotations["proxy-buffering"] == "off"
    assert (
        float(annotations["proxy-read-timeout"]) > GatewaySettings.model_fields["request_timeout_s"].default
    )


def exported(*registries: CollectorRegistry) -> set[str]:
    return {family.name for registry in registries for family in registry.collect()}


def test_autoscaling_asks_for_metrics_and_keys_that_exist() -> None:
    (scaler,) = render("overlays/gpu-autoscaled").all("ScaledObject")
    triggers = {trigger["type"]: trigger["metadata"] for trigger in scaler["spec"]["triggers"]}
    asked = set(re.findall(r"twigvlm_\w+", triggers["prometheus"]["query"]))
    known = exported(GatewayMetrics().registry, WorkerMetrics(layers=2).registry)
    assert asked
    assert asked <= known
    assert triggers["redis-streams"]["stream"] == Keys(RedisSettings.model_fields["shard"].default).jobs
