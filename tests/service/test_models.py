"""`GET /v1/models`: OpenAI's list out of the live workers' heartbeats, each with its card."""

from __future__ import annotations

import httpx

from service.settings import GatewaySettings
from tests.redis_fixture import short_settings
from tests.service.gateway_fixture import in_process
from tests.service.scripted_worker import CARD, ScriptedWorker


async def listed(http: httpx.AsyncClient) -> list[dict[str, object]]:
    response = await http.get("/v1/models")
    assert response.status_code == 200
    body = response.json()
    assert body["object"] == "list"
    return list(body["data"])


async def test_no_worker_is_an_empty_list(client: httpx.AsyncClient) -> None:
    assert await listed(client) == []


async def test_one_entry_a_model_with_its_card(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    worker.heartbeat(worker_id="w1", started_at=200.0)
    worker.heartbeat(worker_id="w2", started_at=100.0)
    (model,) = await listed(client)
    assert {name: model[name] for name in ("id", "object", "created", "owned_by")} == {
        "id": "scripted",
        "object": "model",
        "created": 100,
        "owned_by": "twigserve",
    }
    assert model["card"] == CARD.model_dump(mode="json")


async def test_one_model_by_its_id(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    (model,) = await listed(client)
    assert (await client.get("/v1/models/scripted")).json() == model


async def test_an_id_may_hold_a_slash(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    worker.card = CARD.model_copy(update={"model_id": "team/vlm"})
    worker.heartbeat()
    assert (await client.get("/v1/models/team/vlm")).json()["id"] == "team/vlm"


async def test_an_unknown_model_is_404(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    response = await client.get("/v1/models/gpt-17")
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")


async def test_a_draining_worker_is_not_listed(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    worker.heartbeat(draining=True)
    assert await listed(client) == []


async def test_without_a_queue_it_is_503() -> None:
    nowhere = GatewaySettings(redis=short_settings("unix:///nonexistent/redis.sock"))
    async with in_process(nowhere) as http:
        response = await http.get("/v1/models")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "queue_down"
    assert int(response.headers["retry-after"]) > 0
