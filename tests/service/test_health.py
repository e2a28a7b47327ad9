"""`/livez`, `/readyz`, `/metrics`, and admission's arithmetic."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from service.admission import Admission, retry_after_s
from service.errors import TooBusy
from service.protocol import QueueStats, WorkerInfo
from service.settings import GatewaySettings
from tests.service.gateway_fixture import in_process
from tests.service.scripted_worker import CARD, ScriptedWorker


async def test_alive_without_a_worker_but_not_ready(client: httpx.AsyncClient) -> None:
    assert (await client.get("/livez")).json() == {"status": "alive"}
    response = await client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "no_worker"


async def test_ready(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    response = await client.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {"status": "ready", "workers": 1, "models": ["scripted"]}


async def test_draining_is_not_ready(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    worker.heartbeat(draining=True)
    assert (await client.get("/readyz")).status_code == 503


async def test_starts_without_redis(settings: GatewaySettings) -> None:
    nowhere = settings.redis.model_copy(update={"url": SecretStr("unix:///nonexistent/redis.sock")})
    async with in_process(settings.model_copy(update={"redis": nowhere})) as client:
        assert (await client.get("/livez")).status_code == 200
        response = await client.get("/readyz")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "queue_down")
        assert "/nonexistent" not in response.text


async def test_metrics_parse(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    response = await client.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain")
    names = {family.name for family in text_string_to_metric_families(response.text)}
    assert {"twigvlm_request_success", "twigvlm_queue_lag", "twigvlm_build_info"} <= names


def info(tokens_per_s: float) -> WorkerInfo:
    return WorkerInfo(
        worker_id="w", started_at=0, card=CARD, max_slots=1, free_slots=1, tokens_per_s=tokens_per_s
    )


@pytest.mark.parametrize(
    ("rates", "expected"), [([], 5), ([0.0], 5), ([50.0], 3), ([100.0, 28.0], 1), ([0.1], 60)], ids=str
)
def test_retry_after(rates: list[float], expected: int) -> None:
    assert retry_after_s([info(rate) for rate in rates], tokens_per_job=128) == expected


def test_admission_counts_and_lets_go() -> None:
    admission = Admission(max_jobs=1, tokens_per_job=128)
    with admission.enter():
        with pytest.raises(TooBusy) as refused, admission.enter():
            pass
        assert refused.value.code == "gateway_full"
        assert admission.in_flight == 1
    with admission.enter():
        assert admission.in_flight == 1


def test_admission_sees_the_whole_queue() -> None:
    admission = Admission(max_jobs=3, tokens_per_job=128)
    admission.check_queue(QueueStats(waiting=2, pending=50), [])
    with pytest.raises(TooBusy) as refused:
        admission.check_queue(QueueStats(waiting=3), [info(128.0)])
    assert (refused.value.code, refused.value.retry_after_s) == ("queue_full", 1)
