"""`POST /v1/describe` over a socket: streams, clients that leave, limits, and a queue that goes away."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import pytest

from service.embedded_redis import EmbeddedRedis
from service.prediction import TEMPLATE_TOKENS
from service.protocol import ErrorData, TokenData
from service.settings import GatewaySettings
from tests.redis_fixture import short_settings
from tests.service.gateway_fixture import Live, counted, eventually, on_a_port
from tests.service.scripted_worker import ScriptedWorker, apple, failing
from tests.service.test_describe import PNG, PNG64, error_of
from tests.service.worker_fixture import make_job

URL = "/v1/describe"
BODY = {"image": PNG64, "stream": True}


@dataclass
class Sent:
    """One server-sent event, or a comment."""

    event: str = ""
    id: str = ""
    data: Any = None
    comment: str = ""


async def parse(lines: AsyncIterator[str]) -> AsyncIterator[Sent]:
    sent = Sent()
    async for line in lines:
        name, _, value = line.partition(":")
        if not line:
            yield sent
            sent = Sent()
        elif not name:
            sent.comment = value.strip()
        else:
            setattr(sent, name, json.loads(value) if name == "data" else value.strip())


@contextlib.asynccontextmanager
async def streamed(live: Live, **body: Any) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[Sent]]]:
    async with (
        httpx.AsyncClient(base_url=live.url, timeout=60) as client,
        client.stream("POST", URL, json=BODY | body) as response,
    ):
        yield response, parse(response.aiter_lines())


async def all_events(live: Live, **body: Any) -> list[Sent]:
    async with streamed(live, **body) as (response, events):
        assert response.status_code == 200
        return [sent async for sent in events if sent.event]


async def test_stream_is_tokens_then_done(live: Live, worker: ScriptedWorker) -> None:
    async with streamed(live) as (response, events):
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["X-Accel-Buffering"] == "no"
        assert response.headers["X-Request-ID"]
        seen = [sent async for sent in events]
    assert seen[0].comment == "queued"
    tokens = [sent for sent in seen if sent.event == "token"]
    assert [sent.id for sent in tokens] == ["1-2", "1-3", "1-4", "1-5"]
    # This worker tells no pieces, as one that is older than the field.
    assert tokens[1].data == {"text": " small", "token_ids": [1], "drafted": [True], "pieces": []}
    assert (seen[-1].event, seen[-1].id) == ("done", "1-6")
    assert seen[-1].data["text"] == "".join(sent.data["text"] for sent in tokens) == "A small red apple."


async def test_pieces_are_passed_on_as_the_worker_tells_them(live: Live, worker: ScriptedWorker) -> None:
    _, done = apple(make_job())
    half = TokenData(text="ä b", token_ids=(1, 2, 3), drafted=(True, True, False), pieces=("", "ä", " b"))
    worker.script = lambda _job: ([half], done)
    (token, _) = await all_events(live)
    assert token.data["pieces"] == ["", "ä", " b"]


async def test_stream_and_plain_answer_the_same(live: Live, worker: ScriptedWorker) -> None:
    done = (await all_events(live, include="token_map"))[-1].data
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
        plain = (await client.post(URL, json=BODY | {"stream": False, "include": "token_map"})).json()
    for answer in (done, plain):
        answer["metrics"].pop("time_to_first_token_ms")
        answer.pop("id")
        answer.pop("created")
    assert done == plain


async def test_heartbeats_while_queued(live: Live, worker: ScriptedWorker) -> None:
    worker.hold()
    async with streamed(live) as (_, events):
        comments = [(await anext(events)).comment for _ in range(3)]
        worker.resume()
        assert [sent.event async for sent in events if sent.event][-1] == "done"
    assert comments == ["queued", "waiting", "waiting"]


async def test_an_error_in_the_stream_is_its_last_event(live: Live, worker: ScriptedWorker) -> None:
    worker.script = failing(ErrorData(message="boom", code="engine_failed"))
    (sent,) = await all_events(live)
    assert (sent.event, sent.id) == ("error", "1-2")
    assert sent.data == {
        "error": {"message": "boom", "type": "server_error", "code": "engine_failed", "param": None}
    }


async def test_a_bad_streamed_request_is_a_plain_error(live: Live, worker: ScriptedWorker) -> None:
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
        error_of(await client.post(URL, json=BODY | {"colour": 1}), 400)


@pytest.mark.parametrize("heartbeats", [0, 1, 3])
async def test_leaving_a_stream_cancels_the_job(live: Live, worker: ScriptedWorker, heartbeats: int) -> None:
    worker.hold()
    async with streamed(live) as (_, events):
        await eventually(lambda: len(worker.jobs) == 1)
        for _ in range(heartbeats):
            await anext(events)
    await eventually(lambda: worker.cancelled == [worker.jobs[0].id])
    assert live.gateway.admission.in_flight == 0


async def test_leaving_a_plain_request_cancels_the_job(live: Live, worker: ScriptedWorker) -> None:
    worker.hold()
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
        asking = asyncio.create_task(client.post(URL, json={"image": PNG64}))
        await eventually(lambda: len(worker.jobs) == 1)
        asking.cancel()
        await asyncio.wait({asking})
    await eventually(lambda: worker.cancelled == [worker.jobs[0].id])
    await eventually(lambda: live.gateway.admission.in_flight == 0)


async def test_leaving_while_the_body_is_read(live: Live, worker: ScriptedWorker) -> None:
    host, port = live.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    writer.write(head.encode() + b'{"image"')
    await eventually(lambda: live.gateway.admission.in_flight == 1)
    writer.close()
    await eventually(lambda: live.gateway.admission.in_flight == 0)
    assert worker.jobs == []


async def test_a_body_that_trickles_in_is_408(settings: GatewaySettings, worker: ScriptedWorker) -> None:
    async with on_a_port(settings.model_copy(update={"body_timeout_s": 0.1})) as live:
        host, port = live.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode())
        writer.write(b"Content-Length: 1000\r\n\r\n{")
        async with asyncio.timeout(60):
            assert b" 408 " in await reader.readline()
        writer.close()
        await eventually(lambda: live.gateway.admission.in_flight == 0)


async def test_over_the_limit_is_429(settings: GatewaySettings, worker: ScriptedWorker) -> None:
    worker.hold()
    body = {"image": PNG64}
    async with (
        on_a_port(settings.model_copy(update={"max_open_requests": 2})) as live,
        httpx.AsyncClient(base_url=live.url, timeout=60) as client,
    ):
        asking = [asyncio.create_task(client.post(URL, json=body)) for _ in range(2)]
        await eventually(lambda: live.gateway.admission.in_flight == 2)
        refused = await client.post(URL, files={"image": ("a.png", PNG)})
        assert error_of(refused, 429)["code"] == "gateway_full"
        assert int(refused.headers["Retry-After"]) >= 1
        worker.resume()
        assert [response.status_code for response in await asyncio.gather(*asking)] == [200, 200]
        assert (await client.post(URL, json=body)).status_code == 200


async def test_other_gateways_jobs_count(settings: GatewaySettings, worker: ScriptedWorker) -> None:
    """The worker holds one job; two more wait in the queue, put there by another gateway."""
    worker.hold()
    worker.heartbeat(tokens_per_s=10.0)
    cost = 128 + 8 + TEMPLATE_TOKENS + 7  # max_tokens, R-bar, the prompt's own
    limited = settings.model_copy(update={"max_reserved_tokens": 3 * cost})
    async with (
        on_a_port(settings) as other,
        on_a_port(limited) as live,
        httpx.AsyncClient(timeout=60) as client,
    ):
        ask = partial(client.post, json={"image": PNG64})
        asking = [asyncio.create_task(ask(other.url + URL))]
        await eventually(lambda: len(worker.jobs) == 1)
        asking += [asyncio.create_task(ask(other.url + URL)) for _ in range(2)]
        async with asyncio.timeout(60):
            while (await live.gateway.look())[0].waiting < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        refused = await ask(live.url + URL)
        assert error_of(refused, 429)["code"] == "queue_full"
        assert int(refused.headers["Retry-After"]) == math.ceil(cost / 10)
        broken = await ask(live.url + URL, json={"image": base64.b64encode(b"GIF89a").decode()})
        assert error_of(broken, 429)["code"] == "queue_full"  # before it is decoded
        worker.resume()
        await asyncio.gather(*asking)
        assert (await live.gateway.look())[0].reserved_tokens == 0


@pytest.mark.parametrize("announced", [True, False])
async def test_body_over_the_limit_is_answered(live: Live, worker: ScriptedWorker, announced: bool) -> None:
    """A client that is still sending gets its 413, not a reset connection.

    Caught once: where Content-Length told of it, no counter did.
    """

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(32):
            yield bytes(65_536)

    content = bytes(32 * 65_536) if announced else chunks()
    headers = {"Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
        response = await client.post(URL, content=content, headers=headers)
    assert error_of(response, 413)["code"] == "body_too_large"
    assert counted(live) == {("body_too_large", "413"): 1}


async def test_queue_down(settings: GatewaySettings) -> None:
    """Fast 503 with Retry-After; /readyz says no, /livez yes; and all is well when Redis is back."""
    with EmbeddedRedis() as server:
        redis = short_settings(server.url)
        async with (
            on_a_port(settings.model_copy(update={"redis": redis})) as live,
            httpx.AsyncClient(base_url=live.url, timeout=60) as client,
        ):
            with ScriptedWorker(redis):
                assert (await client.post(URL, json={"image": PNG64})).status_code == 200
            server.stop(keep=True)
            response = await client.post(URL, json={"image": PNG64})
            assert error_of(response, 503)["code"] == "queue_down"
            assert response.headers["Retry-After"]
            paths = ("/readyz", "/livez", "/metrics")
            assert [(await client.get(path)).status_code for path in paths] == [503, 200, 200]
            server.start()
            with ScriptedWorker(redis):
                async with asyncio.timeout(60):  # a connection that broke unseen costs one more 503
                    while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                    while (await client.post(URL, json={"image": PNG64})).status_code != 200:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_job_that_redis_lost_is_put_back(settings: GatewaySettings, stream: bool) -> None:
    """Redis restarts empty while the job is queued: the gateway that took it queues it again."""
    with EmbeddedRedis() as server:
        redis = short_settings(server.url)
        async with (
            on_a_port(settings.model_copy(update={"redis": redis})) as live,
            httpx.AsyncClient(base_url=live.url, timeout=60) as client,
        ):
            announced = ScriptedWorker(redis)
            announced.heartbeat()  # and never claims
            asking = asyncio.create_task(client.post(URL, json=BODY | {"stream": stream}))
            async with asyncio.timeout(60):
                while (await live.gateway.look())[0].waiting < 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            server.stop(keep=True)
            server.start()
            with announced:
                response = await asking
    assert response.status_code == 200
    assert len(announced.jobs) == 1
    assert (f'"id":"{announced.jobs[0].id}"' if stream else announced.jobs[0].id) in response.text
    assert None not in announced.blobs


async def test_metrics_move(live: Live, worker: ScriptedWorker) -> None:
    await all_events(live)
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
        await client.post(URL, json=BODY | {"colour": 1})
        await client.post(URL, json={"image": PNG64})
        text = (await client.get("/metrics")).text
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert samples['twigvlm_request_success_total{finished_reason="stop"}'] == "2.0"
    assert samples['twigvlm_request_failure_total{err="unknown_field",status="400"}'] == "1.0"
    assert samples["twigvlm_time_to_first_token_seconds_count"] == "2.0"
    assert samples["twigvlm_e2e_request_latency_seconds_count"] == "2.0"
    assert samples["twigvlm_queue_lag"] == "0.0"
