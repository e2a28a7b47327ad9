"""`/livez`, `/readyz`, `/metrics`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Awaitable

import httpx
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from service.embedded_redis import EmbeddedRedis
from service.settings import GatewaySettings
from tests.service.gateway_fixture import in_process
from tests.service.scripted_worker import ScriptedWorker
from tests.service.test_describe import PNG64, post_json


async def test_alive_without_a_worker_but_not_ready(client: httpx.AsyncClient) -> None:
    assert (await client.get("/livez")).json() == {"status": "alive"}
    response = await client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "no_worker"


async def test_a_load_balancer_may_ask_for_the_queue_alone(client: httpx.AsyncClient) -> None:
    response = await client.get("/readyz?without_workers=true")
    assert response.status_code == 200
    assert response.json() == {"status": "ready", "workers": 0, "models": []}
    refused = await client.get("/readyz?without_workers=perhaps")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "without_workers"


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
        assert (await client.get("/readyz?without_workers=true")).status_code == 503
        assert "/nonexistent" not in response.text


async def test_a_queue_that_hangs_holds_nobody_up(settings: GatewaySettings) -> None:
    """Caught once: every request, and every scrape, waited as long as a command may take."""
    with EmbeddedRedis() as server:
        redis = settings.redis.model_copy(update={"url": SecretStr(server.url), "command_timeout_s": 3.0})
        update = {"redis": redis, "look_age_s": 0.1}
        async with in_process(settings.model_copy(update=update)) as client:
            assert (await client.get("/metrics")).status_code == 200
            os.kill(server.pid, signal.SIGSTOP)
            try:
                assert await seconds(client.get("/metrics"), 200) < 3.0
                for _ in range(2):  # the last look may have been young enough for the first of them
                    await seconds(post_json(client, image=PNG64), 503)
                assert await seconds(post_json(client, image=PNG64), 503) < 3.0
            finally:
                os.kill(server.pid, signal.SIGCONT)


async def seconds(answer: Awaitable[httpx.Response], status: int) -> float:
    began = time.monotonic()
    assert (await answer).status_code == status
    return time.monotonic() - began


async def test_metrics_parse(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    response = await client.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain")
    names = {family.name for family in text_string_to_metric_families(response.text)}
    assert {"twigvlm_request_success", "twigvlm_queue_lag", "twigvlm_build_info"} <= names
