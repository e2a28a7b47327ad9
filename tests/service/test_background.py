"""How background jobs end is counted, once each, though no request waits for it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from service import background
from service.broker.base import BrokerUnavailable
from service.protocol import ErrorData
from tests.service.gateway_fixture import Live, counted, eventually
from tests.service.scripted_worker import ScriptedWorker, apple, failing
from tests.service.test_describe import PNG64
from tests.service.test_jobs import ASYNC, URL, ended, events, start


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "LOOK_S", 0.01)


@pytest.fixture
async def client(live: Live) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as running:
        yield running


async def all_counted(live: Live) -> None:
    await eventually(lambda: not live.gateway.background._unended)


async def test_each_end_is_counted_once(
    client: httpx.AsyncClient, live: Live, worker: ScriptedWorker
) -> None:
    """Caught once: none was, so a fleet that failed all of them had spent nothing of its error budget."""
    script = failing(ErrorData(message="boom", code="engine_failed"))
    worker.script = lambda job: script(job) if job.prompt == "boom" else apple(job)
    for prompt in ("good", "well", "boom"):
        await ended(client, await start(client, prompt=prompt))
    await events(client, await start(client))  # who follows it counts nothing
    await all_counted(live)
    worker.hold()
    await client.delete(await start(client))
    await all_counted(live)
    assert counted(live) == {("stop",): 3, ("engine_failed", "500"): 1, ("cancelled", "409"): 1}
    latency = "twigvlm_e2e_request_latency_seconds_count"
    assert live.gateway.metrics.registry.get_sample_value(latency) == 0


async def test_asked_for_again_it_is_one_job(
    client: httpx.AsyncClient, live: Live, worker: ScriptedWorker
) -> None:
    client.headers["Idempotency-Key"] = "k"
    for _ in range(2):
        await ended(client, await start(client))
        await all_counted(live)
    assert counted(live) == {("stop",): 1}


async def test_whose_answer_is_waited_for_is_counted_by_who_waits(
    client: httpx.AsyncClient, live: Live, worker: ScriptedWorker
) -> None:
    for stream in (False, True):
        await client.post(URL, json={"image": PNG64, "stream": stream})
    assert counted(live) == {("stop",): 2}
    assert not live.gateway.background._unended


async def test_a_lost_job_is_a_failure(
    client: httpx.AsyncClient, live: Live, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unknown(job_id: str) -> None:
        return None

    worker.hold()
    await start(client)
    monkeypatch.setattr(live.gateway.broker, "status", unknown)
    await all_counted(live)
    assert counted(live) == {("job_lost", "503"): 1}


async def test_an_absent_queue_puts_the_counting_off(
    client: httpx.AsyncClient, live: Live, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def away(job_id: str) -> None:
        asked.append(job_id)
        raise BrokerUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(live.gateway.broker, "status", away)
        assert (await client.post(URL, json={"image": PNG64}, headers=ASYNC)).status_code == 202
        await eventually(lambda: len(asked) > 1)
        assert counted(live) == {}
    await all_counted(live)
    assert counted(live) == {("stop",): 1}
