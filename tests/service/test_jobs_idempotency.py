"""`Idempotency-Key`: one job a key, whoever asks, however often, in whichever form."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from service.protocol import ErrorData
from service.settings import GatewaySettings
from tests.service.gateway_fixture import Live, eventually, in_process, on_a_port
from tests.service.scripted_worker import ScriptedWorker, failing
from tests.service.test_describe import PNG, PNG64, error_of
from tests.service.test_describe_live import parse
from tests.service.test_jobs import ended

URL = "/v1/describe"
KEY = {"Idempotency-Key": "order 66"}
BODY = {"image": PNG64, "max_tokens": 9}


async def post(client: httpx.AsyncClient, **changed: Any) -> httpx.Response:
    return await client.post(URL, json=BODY | changed, headers=KEY)


async def test_again_gives_the_stored_answer(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    first, second = await post(client), await post(client)
    assert first.status_code == second.status_code == 200
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    assert first.headers["Content-Location"] == second.headers["Content-Location"]
    assert first.json()["id"] == second.json()["id"]
    assert first.json()["text"] == second.json()["text"]
    assert len(worker.jobs) == 1


async def test_many_at_once_share_one_job(
    live: Live, settings: GatewaySettings, worker: ScriptedWorker
) -> None:
    """Two gateways: only the broker can decide whose job it is."""
    worker.hold()
    async with on_a_port(settings) as other, httpx.AsyncClient(timeout=60) as client:
        asking = [
            asyncio.create_task(client.post(url + URL, json=BODY, headers=KEY))
            for url in 3 * (live.url, other.url)
        ]
        await eventually(lambda: len(worker.jobs) == 1)
        worker.resume()
        answers = await asyncio.gather(*asking)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(worker.jobs) == 1


async def test_the_form_of_the_answer_is_free(live: Live, worker: ScriptedWorker) -> None:
    """Plain, as a form, streamed and as a job: one job."""
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
        plain = (await post(client)).json()
        form = await client.post(URL, files={"image": ("a.png", PNG)}, data={"max_tokens": 9}, headers=KEY)
        assert form.json()["id"] == plain["id"]
        response = await post(client, stream=True)
        job = await client.post(URL, json=BODY, headers=KEY | {"Prefer": "respond-async"})
    (data,) = [
        line for line in response.text.splitlines() if line.startswith("data:") and plain["id"] in line
    ]
    assert plain["text"] in data
    assert response.text.count("event: token") == 4
    assert job.status_code == 202
    assert job.json()["status"] == "completed"
    assert job.json()["result"]["text"] == plain["text"]
    assert len(worker.jobs) == 1


@pytest.mark.parametrize(
    "changed", [{"max_tokens": 8}, {"prompt": "Why?"}, {"include": ["token_map"]}], ids=str
)
async def test_another_request_is_409(
    client: httpx.AsyncClient, worker: ScriptedWorker, changed: dict[str, Any]
) -> None:
    await post(client)
    assert error_of(await post(client, **changed), 409)["code"] == "idempotency_conflict"
    assert len(worker.jobs) == 1


async def test_a_different_picture_is_409(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    await post(client)
    assert error_of(await post(client, image=[PNG64, PNG64]), 409)["code"] == "idempotency_conflict"


async def test_a_lost_race_for_the_key_is_409(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    """Two different requests at once: the script that queues the job takes the key, so one of them loses."""
    worker.hold()
    asking = [asyncio.create_task(post(client, max_tokens=count)) for count in (5, 6)]
    await eventually(lambda: any(task.done() for task in asking))
    worker.resume()
    assert sorted(answer.status_code for answer in await asyncio.gather(*asking)) == [200, 409]
    assert len(worker.jobs) == 1


async def test_a_client_that_left_finds_its_answer(live: Live, worker: ScriptedWorker) -> None:
    """A dropped connection is what the key is for: the job goes on."""
    worker.hold()
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
        async with client.stream("POST", URL, json=BODY | {"stream": True}, headers=KEY) as response:
            await anext(parse(response.aiter_lines()))
            await eventually(lambda: len(worker.jobs) == 1)
        asking = asyncio.create_task(post(client))
        await eventually(lambda: live.gateway.admission.in_flight == 1)
        asking.cancel()
        await asyncio.wait({asking})
        await eventually(lambda: live.gateway.admission.in_flight == 0)
        worker.resume()
        assert (await post(client)).json()["text"] == "A small red apple."
    assert worker.cancelled == []
    assert len(worker.jobs) == 1


async def test_an_error_is_replayed_too(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    worker.script = failing(ErrorData(message="boom", code="engine_failed"))
    assert [error_of(await post(client), 500)["code"] for _ in range(2)] == 2 * ["engine_failed"]
    assert len(worker.jobs) == 1


async def test_a_refused_request_leaves_the_key_free(
    client: httpx.AsyncClient, worker: ScriptedWorker
) -> None:
    error_of(await post(client, retained_tokens=35), 422)
    assert (await post(client)).status_code == 200


async def test_a_stored_answer_needs_no_worker(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    await post(client)
    worker.heartbeat(draining=True)
    assert (await post(client)).status_code == 200
    other = await client.post(URL, json=BODY, headers={"Idempotency-Key": "other"})
    assert error_of(other, 503)["code"] == "no_worker"


async def test_the_key_lives_as_long_as_the_result(settings: GatewaySettings, worker: ScriptedWorker) -> None:
    brief = settings.redis.model_copy(update={"result_ttl_s": 1})
    async with in_process(settings.model_copy(update={"redis": brief})) as client:
        worker.hold()
        prefer = {"Prefer": "respond-async"}
        await client.post(URL, json=BODY, headers=prefer)  # keeps the worker busy
        await eventually(lambda: len(worker.jobs) == 1)
        response = await client.post(URL, json=BODY, headers=KEY | prefer)
        await client.delete(response.headers["Location"])
        assert error_of(await post(client), 409)["code"] == "cancelled"
        async with asyncio.timeout(60):
            while (await client.get(response.headers["Location"])).status_code != 404:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        worker.resume()
        assert (await post(client, max_tokens=3)).status_code == 200


@pytest.mark.parametrize("key", ["", 256 * "k"], ids=len)
async def test_a_key_of_the_wrong_length_is_400(
    client: httpx.AsyncClient, worker: ScriptedWorker, key: str
) -> None:
    response = await client.post(URL, json=BODY, headers={"Idempotency-Key": key})
    assert error_of(response, 400)["param"] == "Idempotency-Key"


async def test_the_longest_key(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    headers = {"Idempotency-Key": 255 * "k", "Prefer": "respond-async"}
    response = await client.post(URL, json=BODY, headers=headers)
    assert (await ended(client, response.headers["Location"]))["status"] == "completed"
