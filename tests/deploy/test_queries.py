"""Every query of every panel, rule and alert, on a real Prometheus that scraped a real run.

Two gateways behind nginx and two workers; enough traffic that answers, refusals and failures all occur.
"""

from __future__ import annotations

import concurrent.futures
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import redis

from k8s.monitoring.__main__ import DASHBOARDS
from k8s.monitoring.grafana import Dashboard
from service.embedded_redis import EmbeddedRedis
from tests.deploy.cluster import render
from tests.deploy.test_alerts import ALERTS, GROUPS
from tests.deploy.test_topology import describe
from tests.deploy.topology import NGINX, PROMETHEUS, Topology, await_true
from tests.redis_fixture import short_settings

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(NGINX is None or PROMETHEUS is None, reason="no nginx or Prometheus on this machine"),
]

RECORDED = [rule for group in GROUPS for rule in group["rules"] if "record" in rule]
VARIABLES = {"$namespace": ".*", "$instance": ".*", "$__rate_interval": "1m"}
BURST = 8  # more than both gateways together take at once


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    folder: Path = tmp_path_factory.mktemp("watched")
    with EmbeddedRedis() as server:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", "256mb")
        few = {"TWIGSERVE_GATEWAY_MAX_OPEN_REQUESTS": "2"}
        with Topology(folder, short_settings(server.url), few) as topology:
            await_true(lambda: _busy(topology), "traffic in Prometheus")
            yield topology


def _busy(topology: Topology) -> bool:
    """Sends a burst; True once Prometheus has seen counters of every kind grow."""
    with (
        httpx.Client(base_url=topology.url, timeout=30, trust_env=False) as client,
        concurrent.futures.ThreadPoolExecutor(BURST) as pool,
    ):
        list(pool.map(lambda number: describe(client, f"burst {number}", 8), range(BURST)))
    seen = (
        "sum(rate(twigvlm_admission_rejections_total[1m])) > 0",
        "sum(rate(twigvlm_spec_decode_num_accepted_tokens_total[1m])) > 0",
        "sum(rate(twigvlm_spec_decode_num_accepted_tokens_per_pos_total[1m])) > 0",
        "sum(rate(twigvlm_request_success_total[1m])) > 0",
        "twigserve:acceptance:ratio_rate1d > 0",
        "twigserve:errors:ratio_rate3d >= 0",
    )
    return all(topology.query(one) for one in seen)


def values(topology: Topology, promql: str) -> list[float]:
    """Every number of the last minute, as a panel would draw it."""
    now = time.time()
    asked = {"query": promql, "start": now - 60, "end": now, "step": 1}
    answer = httpx.get(
        f"{topology.prometheus_url}/api/v1/query_range", params=asked, timeout=30, trust_env=False
    )
    assert answer.status_code == 200, (promql, answer.text)
    series = answer.json()["data"]["result"]
    numbers = [float(value) for one in series for _, value in one["values"]]
    return [number for number in numbers if not math.isnan(number)]


def without(topology: Topology, queries: list[str]) -> list[str]:
    """Those that give no series."""
    return [promql for promql in queries if not values(topology, promql)]


def filled_in(promql: str) -> str:
    for name, value in VARIABLES.items():
        promql = promql.replace(name, value)
    return promql


def selectors(promql: Any) -> Iterator[str]:
    """The parts that pick series, whatever they are compared with."""
    if isinstance(promql, promql_parser.VectorSelector):
        yield promql.prettify()
    for name in ("lhs", "rhs", "expr", "args", "vector_selector"):
        inner = getattr(promql, name, None)
        for one in inner if isinstance(inner, list) else [inner]:
            if one is not None:
                yield from selectors(one)


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda one: one.uid)
def test_every_panel_has_something_to_draw(watched: Topology, dashboard: Dashboard) -> None:
    queries = [filled_in(query.expr) for panel in dashboard.panels() for query in panel.queries]
    assert without(watched, queries) == []


def test_the_choices_of_the_dashboards_are_labels_of_metrics() -> None:
    choices = {choice for dashboard in DASHBOARDS for choice in dashboard.choices}
    assert choices == {("namespace", "twigvlm_build_info"), ("instance", "twigvlm_num_requests_running")}


def test_every_recording_rule_records(watched: Topology) -> None:
    assert without(watched, [rule["expr"] for rule in RECORDED]) == []
    assert without(watched, [rule["record"] for rule in RECORDED]) == []


def test_every_alert_looks_at_series_that_exist(watched: Topology) -> None:
    for rule in ALERTS.values():
        values(watched, rule["expr"])  # evaluates, whether it fires or not
        looked_at = list(selectors(promql_parser.parse(rule["expr"])))
        assert looked_at
        assert without(watched, looked_at) == [], rule["alert"]


def test_the_autoscaler_has_an_answer(watched: Topology) -> None:
    (scaler,) = render("overlays/gpu-autoscaled").all("ScaledObject")
    (query,) = [one["metadata"]["query"] for one in scaler["spec"]["triggers"] if one["type"] == "prometheus"]
    assert values(watched, query.replace('{namespace="twigserve"}', ""))
