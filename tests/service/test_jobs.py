"""Jobs: asked for with `Prefer: respond-async`, polled, followed from any event on, cancelled."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from service.broker.base import BrokerUnavailable
from service.errors import BadField, Unavailable
from service.jobs import has_seen_the_end, resume_after
from service.protocol import ErrorData, JobStatus
from service.settings import GatewaySettings
from tests.contract.conftest import done, make_job
from tests.service.gateway_fixture import Live, eventually, in_process, on_a_port
from tests.service.scripted_worker import ScriptedWorker, failing
from tests.service.test_describe import PNG64, error_of, post_form
from tests.service.test_describe_live import Sent, parse

URL = "/v1/describe"
ASYNC = {"Prefer": "respond-async"}
UNKNOWN = "/v1/jobs/desc-" + 32 * "0"


async def start(client: httpx.AsyncClient, **fields: Any) -> str:
    """The job's URL."""
    response = await client.post(URL, json={"image": PNG64} | fields, headers=ASYNC)
    assert response.status_code == 202, response.text
    location = response.headers["Location"]
    assert location == f"/v1/jobs/{response.json()['id']}"
    return str(location)


async def ended(client: httpx.AsyncClient, location: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            response = await client.get(location)
            assert response.status_code == 200, response.text
            body: dict[str, Any] = response.json()
            if body["status"] not in ("queued", "running"):
                return body
            await asyncio.sleep(0.01)


async def events(client: httpx.AsyncClient, location: str, after: str | None = None) -> list[Sent]:
    headers = {} if after is None else {"Last-Event-ID": after}
    async with client.stream("GET", location + "/events", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        return [sent async for sent in parse(response.aiter_lines()) if sent.event]


async def test_an_accepted_job_is_named_whatever_fails_next(
    live: Live, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its status was asked for the answer's sake: a 503 without an id, and the job ran for nobody."""

    async def away(job_id: str) -> None:
        raise BrokerUnavailable("away")

    worker.hold()
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
        with monkeypatch.context() as patch:
            patch.setattr(live.gateway.broker, "status", away)
            location = await start(client)
        assert (await client.delete(location)).status_code == 200


async def test_jobs_that_end_before_a_worker_has_them_are_counted(live: Live) -> None:
    """They were in nobody's counters: a worker counts what it claims."""
    with ScriptedWorker(live.gateway.settings.redis) as worker:
        worker.hold()
        async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
            await start(client)
            await eventually(lambda: len(worker.jobs) == 1)
            assert (await client.delete(await start(client))).status_code == 200
            late = make_job(deadline_at=time.time() - 1)
            await live.gateway.broker.submit(late, {})
            await live.gateway.broker.expire(late.id)
            text = (await client.get("/metrics")).text
    assert "twigvlm_jobs_cancelled_waiting_total 1.0" in text
    assert "twigvlm_jobs_expired_waiting_total 1.0" in text


async def test_accepted_at_once_and_answered_later(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    worker.hold()
    response = await client.post(URL, json={"image": PNG64}, headers={"Prefer": "wait=5, Respond-Async"})
    assert response.status_code == 202
    assert response.headers["Preference-Applied"] == "respond-async"
    job = response.json()
    assert set(job) == {"id", "object", "status", "created"}
    assert job["object"] == "job"
    assert job["status"] in ("queued", "running")  # a worker may be quicker than the answer
    location = response.headers["Location"]
    await eventually(lambda: len(worker.jobs) == 1)
    assert (await client.get(location)).json()["status"] == "running"
    worker.resume()
    assert (await ended(client, location))["status"] == "completed"


async def test_the_result_is_the_answer(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    direct = (await client.post(URL, json={"image": PNG64, "include": "token_map"})).json()
    job = await ended(client, await start(client, include="token_map"))
    assert set(job) == {"id", "object", "status", "created", "result"}
    result = job["result"]
    assert result["id"] == job["id"]
    assert result["created"] == job["created"]
    assert result["metrics"]["time_to_first_token_ms"] == 7.0  # the worker's: queue_s + ttft_s
    for answer in (direct, result):
        del answer["metrics"]["time_to_first_token_ms"], answer["id"], answer["created"]
    assert result == direct


async def test_a_form_may_ask_for_a_job(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    client.headers["Prefer"] = "respond-async"
    response = await post_form(client, stream="true")
    assert response.status_code == 202
    job = await ended(client, response.headers["Location"])
    assert "token_map" not in job["result"]


async def test_a_bad_request_is_refused_at_once(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    response = await client.post(URL, json={"image": PNG64, "colour": 1}, headers=ASYNC)
    error_of(response, 400)


async def test_a_failed_job_tells_why(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    worker.script = failing(ErrorData(message="boom", code="engine_failed"))
    job = await ended(client, await start(client))
    assert job["status"] == "failed"
    assert job["error"] == {
        "message": "boom",
        "type": "server_error",
        "code": "engine_failed",
        "param": None,
    }
    assert "result" not in job


@pytest.mark.parametrize("path", [UNKNOWN, "/v1/jobs/x", "/v1/jobs/desc-*", UNKNOWN + "/events"])
async def test_an_unknown_job_is_404(client: httpx.AsyncClient, path: str) -> None:
    assert error_of(await client.get(path), 404)["code"] == "job_not_found"
    if not path.endswith("/events"):
        error_of(await client.delete(path), 404)


async def test_an_expired_job_is_404(settings: GatewaySettings, worker: ScriptedWorker) -> None:
    brief = settings.redis.model_copy(update={"result_ttl_s": 1})
    async with in_process(settings.model_copy(update={"redis": brief})) as client:
        location = await start(client)
        await ended(client, location)  # by the worker, whose result TTL is long
        worker.hold()
        await start(client)
        await eventually(lambda: len(worker.jobs) == 2)
        waiting = await start(client)
        await client.delete(waiting)
        async with asyncio.timeout(60):
            while (await client.get(waiting)).status_code != 404:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await client.get(location)).status_code == 200


# --- cancelling --------------------------------------------------------------------------------------


async def test_cancel_a_waiting_job(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    worker.hold()
    await start(client)
    await eventually(lambda: len(worker.jobs) == 1)
    location = await start(client)
    for _ in range(2):
        job = (await client.delete(location)).json()
        assert job["status"] == "cancelled"
        assert job["error"]["code"] == "cancelled"
    assert (await client.get(location)).json() == job


async def test_cancel_a_running_job(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    worker.hold()
    location = await start(client)
    await eventually(lambda: len(worker.jobs) == 1)
    assert (await client.delete(location)).json()["status"] in ("running", "cancelled")
    assert (await ended(client, location))["status"] == "cancelled"
    assert worker.cancelled == [worker.jobs[0].id]


async def test_a_completed_job_stays_completed(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    location = await start(client)
    job = await ended(client, location)
    response = await client.delete(location)
    assert (response.status_code, response.json()) == (200, job)


async def test_who_waits_for_a_job_that_another_cancels(live: Live, worker: ScriptedWorker) -> None:
    """The answer's address is in its headers while it streams, so it can be cancelled from elsewhere."""
    worker.hold()
    body = {"image": PNG64, "stream": True}
    async with (
        httpx.AsyncClient(base_url=live.url, timeout=60) as client,
        client.stream("POST", URL, json=body) as response,
    ):
        await eventually(lambda: len(worker.jobs) == 1)
        await client.delete(response.headers["Content-Location"])
        last = [sent async for sent in parse(response.aiter_lines()) if sent.event][-1]
    assert last.event == "error"
    assert last.data["error"]["code"] == "cancelled"


# --- events ------------------------------------------------------------------------------------------


async def test_events_from_every_point(live: Live, worker: ScriptedWorker) -> None:
    """After any event come exactly the rest, while the job runs and after it has ended."""
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
        location = await start(client)
        whole = await events(client, location)
        assert [sent.event for sent in whole] == ["token"] * 4 + ["done"]
        assert [sent.id for sent in whole] == ["1-2", "1-3", "1-4", "1-5", "1-6"]
        assert whole[-1].data == (await client.get(location)).json()["result"]
        for position, sent in enumerate(whole[:-1]):
            assert await events(client, location, after=sent.id) == whole[position + 1 :]
        assert await events(client, location, after="0-0") == whole
        after_the_end = await client.get(location + "/events", headers={"Last-Event-ID": whole[-1].id})
        assert after_the_end.status_code == 204


async def test_leaving_and_coming_back_while_it_runs(
    live: Live, settings: GatewaySettings, worker: ScriptedWorker
) -> None:
    """Nothing is cancelled, repeated or missing; the second half is read from another gateway."""
    worker.hold()
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
        location = await start(client)
        async with client.stream("GET", location + "/events") as response:
            await anext(response.aiter_lines())
            await eventually(lambda: len(worker.jobs) == 1)
        assert (await client.get(location)).json()["status"] == "running"
    async with on_a_port(settings) as other, httpx.AsyncClient(base_url=other.url, timeout=60) as client:
        following = asyncio.create_task(events(client, location, after="1-1"))
        worker.resume()
        seen = await following
    assert "".join(sent.data["text"] for sent in seen[:-1]) == "A small red apple."
    assert worker.cancelled == []


@pytest.mark.parametrize("bad", ["x", "1", "-1-2", "1-2-3", "1-9999", "9-1", "1-" + 20 * "9"])
async def test_a_bad_last_event_id_is_400(
    client: httpx.AsyncClient, worker: ScriptedWorker, bad: str
) -> None:
    location = await start(client)
    await ended(client, location)
    response = await client.get(location + "/events", headers={"Last-Event-ID": bad})
    error = error_of(response, 400)
    assert (error["param"], error["code"]) == ("Last-Event-ID", "bad_event_id")


def test_an_id_from_before_a_loss_is_503() -> None:
    """Caught once: it was called a bad one, or the end of the run after the loss."""
    status = JobStatus(make_job(), "queued", 1000, last_seq=0, cancel_requested=False, terminal=None)
    with pytest.raises(Unavailable) as lost:
        resume_after("1-4", status)
    assert lost.value.code == "events_lost"
    again = JobStatus(make_job(), "running", 2, last_seq=5, cancel_requested=False, terminal=None)
    for never_given, now in (("1001-1", status), ("0-4", status), ("1-6", again)):
        with pytest.raises(BadField):
            resume_after(never_given, now)
    assert not has_seen_the_end("1-5", done(1001, 5))
    assert has_seen_the_end("1001-5", done(1001, 5))


async def test_a_failed_jobs_events_end_in_its_error(
    client: httpx.AsyncClient, worker: ScriptedWorker
) -> None:
    worker.script = failing(ErrorData(message="boom", code="engine_failed"))
    location = await start(client)
    (sent,) = await events(client, location)
    assert (sent.event, sent.id) == ("error", "1-2")
    assert sent.data["error"]["code"] == "engine_failed"


async def test_events_are_readable_after_the_deadline(
    client: httpx.AsyncClient, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower's patience counted from the job's creation: a late reader of a finished job got a 504."""
    location = await start(client)
    await ended(client, location)
    later = SimpleNamespace(time=lambda: time.time() + 1000, monotonic=time.monotonic)
    monkeypatch.setattr("service.gateway.time", later)
    assert [sent.event for sent in await events(client, location)][-1] == "done"


async def test_queue_down_is_503(settings: GatewaySettings) -> None:
    nowhere = settings.redis.model_copy(update={"url": type(settings.redis.url)("unix:///nonexistent.sock")})
    async with in_process(settings.model_copy(update={"redis": nowhere})) as client:
        for method, path in (("GET", UNKNOWN), ("DELETE", UNKNOWN), ("GET", UNKNOWN + "/events")):
            assert error_of(await client.request(method, path), 503)["code"] == "queue_down"
