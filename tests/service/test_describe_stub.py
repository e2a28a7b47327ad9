"""Gateway, queue and the real worker loop together, with an engine whose words can be predicted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import httpx
import pytest

from service.broker.redis import RedisWorkerBroker
from service.metrics import WorkerMetrics
from service.settings import RedisSettings, WorkerSettings
from service.worker import Engine
from service.worker_loop import Worker
from tests.service.gateway_fixture import Live
from tests.service.stub_engine import StubEngine, expected_tokens, text_of
from tests.service.test_describe import PNG64, error_of, post_form, post_json
from tests.service.test_describe_live import all_events


@pytest.fixture
async def stub(redis_settings: RedisSettings) -> AsyncIterator[StubEngine]:
    """A worker that has announced itself."""
    engine = StubEngine()
    broker = RedisWorkerBroker(redis_settings)
    settings = WorkerSettings(redis=redis_settings, metrics_port=None, poll_s=0.1)
    worker = Worker(Engine(engine), broker, settings, "stub", WorkerMetrics(engine.card.layers))
    thread = threading.Thread(target=worker.run)
    thread.start()
    yield engine
    worker.stop()
    thread.join()
    broker.close()


@pytest.fixture
async def ready(live: Live, stub: StubEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as client, asyncio.timeout(60):
        while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        yield client


async def test_words_and_pixels_arrive(ready: httpx.AsyncClient, stub: StubEngine) -> None:
    answer = (await post_form(ready, prompt="hello", max_tokens=9, retained_tokens=3)).json()
    assert answer["text"] == text_of(expected_tokens("hello", 9))
    assert answer["finish_reason"] == "length"
    assert answer["usage"]["prompt_tokens_details"] == {
        "image_tokens": 16,
        "retained_image_tokens": 3,
        "pruned_image_tokens": 13,
    }
    (request,) = stub.seen
    assert request.images[0].shape == (4, 4, 3)
    assert request.retained_tokens == 3


async def test_the_worker_says_no(ready: httpx.AsyncClient) -> None:
    error = error_of(await post_json(ready, prompt="refuse this"), 400)
    assert (error["param"], error["message"]) == ("prompt", "the prompt is too long")


async def test_concurrent_requests_equal_their_solo_answers(ready: httpx.AsyncClient, live: Live) -> None:
    prompts = [f"prompt {number}" for number in range(8)]
    bodies = [{"prompt": prompt, "max_tokens": 5 + number} for number, prompt in enumerate(prompts)]
    answers = await asyncio.gather(*(post_json(ready, **body) for body in bodies))
    assert [answer.json()["text"] for answer in answers] == [
        text_of(expected_tokens(body["prompt"], body["max_tokens"])) for body in bodies
    ]


async def test_stream_and_plain_have_the_same_text(ready: httpx.AsyncClient, live: Live) -> None:
    plain = (await post_json(ready, prompt="same", max_tokens=20)).json()["text"]
    events = await all_events(live, prompt="same", max_tokens=20)
    assert "".join(sent.data["text"] for sent in events if sent.event == "token") == plain
    assert events[-1].data["text"] == plain


async def test_two_pictures(ready: httpx.AsyncClient, stub: StubEngine) -> None:
    answer = (await ready.post("/v1/describe", json={"image": [PNG64, PNG64]})).json()
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == 32
    assert len(stub.seen[0].images) == 2
