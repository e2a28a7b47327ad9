"""`X-Request-Timeout-Ms`: 504 on time, no model time for what is late; and cancellation within a round."""

from __future__ import annotations

import asyncio
import contextlib
import time

import httpx
import pytest

from service.deadlines import HEADER, deadline_at, timeout_s
from service.errors import BadField
from service.gateway import DEADLINE_GRACE_S
from service.settings import GatewaySettings
from tests.service.gateway_fixture import Live, eventually, in_process, on_a_port
from tests.service.scripted_worker import ScriptedWorker
from tests.service.test_describe import PNG, PNG64, error_of, post_json
from tests.service.worker_fixture import running_worker

URL = "/v1/describe"


def test_the_clients_own_within_the_longest() -> None:
    assert timeout_s({}, 300.0) == 300.0
    assert timeout_s({HEADER: "1500"}, 300.0) == 1.5
    assert timeout_s({HEADER: "300000"}, 300.0) == 300.0
    for bad in ("", "0", "-1", "1.5", "soon", "300001", "9" * 5000, "٣", "0" * 11 + "1999"):
        with pytest.raises(BadField) as refused:
            timeout_s({HEADER: bad}, 300.0)
        assert refused.value.param == HEADER


def test_a_deadline_counts_from_arrival() -> None:
    assert deadline_at(time.monotonic() - 5, 7) == pytest.approx(time.time() + 2, abs=0.5)


async def test_late_is_504_and_costs_no_model_time(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    """The one slot is taken: the job ends in the queue, at its deadline, and no worker ever sees it."""
    worker.hold()
    busy = asyncio.create_task(post_json(client))
    await eventually(lambda: len(worker.jobs) == 1)
    began = time.monotonic()
    late = await client.post(URL, json={"image": PNG64}, headers={HEADER: "300"})
    assert error_of(late, 504)["code"] == "deadline_exceeded"
    assert time.monotonic() - began >= 0.3
    worker.resume()
    assert (await busy).status_code == 200
    assert (await post_json(client)).status_code == 200
    assert len(worker.jobs) == 2


async def test_a_running_job_ends_at_its_deadline(settings: GatewaySettings) -> None:
    with running_worker(settings.redis, step_s=0.02) as worker:
        async with in_process(settings) as client:
            await eventually_ready(client)
            late = await client.post(
                URL, files={"image": ("a.png", PNG)}, data={"max_tokens": "256"}, headers={HEADER: "400"}
            )
            assert error_of(late, 504)["code"] == "deadline_exceeded"
            assert len(worker.stub.seen) == 1
            await eventually(lambda: not worker.stub.has_work())


async def eventually_ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(60):
        while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_too_long_names_the_header_and_the_limit(
    client: httpx.AsyncClient, worker: ScriptedWorker, settings: GatewaySettings
) -> None:
    longest_ms = round(settings.request_timeout_s * 1000)
    asked = await client.post(URL, json={"image": PNG64}, headers={HEADER: str(longest_ms + 1)})
    error = error_of(asked, 400)
    assert error["param"] == HEADER
    assert str(longest_ms) in error["message"]


async def test_a_background_job_has_a_deadline_of_its_own(
    client: httpx.AsyncClient, worker: ScriptedWorker, settings: GatewaySettings
) -> None:
    for given, expected_s in ((None, settings.job_timeout_s), ("25000", 25.0)):
        headers = {"Prefer": "respond-async"} | ({HEADER: given} if given else {})
        answer = await client.post(URL, json={"image": PNG64}, headers=headers)
        assert answer.status_code == 202
        await eventually(lambda: bool(worker.jobs))
        job = worker.jobs.pop()
        assert job.deadline_at == pytest.approx(time.time() + expected_s, abs=15)


async def test_a_second_waiter_waits_no_longer_than_it_said(
    client: httpx.AsyncClient, worker: ScriptedWorker
) -> None:
    """The job is the first one's, with the first one's deadline, and goes on."""
    worker.hold()
    key = {"Idempotency-Key": "k"}
    first = asyncio.create_task(client.post(URL, json={"image": PNG64}, headers=key))
    await eventually(lambda: len(worker.jobs) == 1)
    began = time.monotonic()
    second = await client.post(URL, json={"image": PNG64}, headers=key | {HEADER: "50"})
    assert error_of(second, 504)["code"] == "deadline_exceeded"
    # Caught once: it waited as long as a job may be read after its end, and said that it was cancelled.
    assert time.monotonic() - began < DEADLINE_GRACE_S
    assert "goes on at /v1/jobs/" in error_of(second, 504)["message"]
    worker.resume()
    assert (await first).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_the_engine_within_a_round(
    settings: GatewaySettings, stream: bool
) -> None:
    """Rounds that begin after the queue knows of it and still compute the request: at most one."""
    with running_worker(settings.redis, step_s=0.05) as worker:
        async with on_a_port(settings) as live, httpx.AsyncClient(base_url=live.url, timeout=60) as client:
            await eventually_ready(client)
            rounds, cancelled_at = watch(worker.stub, live)
            body = {"image": PNG64, "max_tokens": 256, "stream": stream}
            asking = asyncio.create_task(client.post(URL, json=body))
            await eventually(lambda: len(rounds) >= 3)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
            await eventually(lambda: not worker.stub.has_work())
            assert len([began for began in rounds if began > cancelled_at[0]]) <= 1
            async with asyncio.timeout(60):  # the job's end is written in the worker's next turn
                while (await live.gateway.look())[0].reserved_tokens:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)


def watch(stub: object, live: Live) -> tuple[list[float], list[float]]:
    """When rounds with work in them began, and when a cancel had reached the queue."""
    rounds: list[float] = []
    cancelled_at: list[float] = []
    step, cancel = stub.step, live.gateway.broker.cancel  # type: ignore[attr-defined]

    def counted_step() -> object:
        if any(not sequence.aborted for sequence in stub._sequences.values()):  # type: ignore[attr-defined]
            rounds.append(time.monotonic())
        return step()

    async def timed_cancel(job_id: str) -> bool:
        done = await cancel(job_id)
        cancelled_at.append(time.monotonic())
        return done

    stub.step = counted_step  # type: ignore[attr-defined]
    live.gateway.broker.cancel = timed_cancel  # type: ignore[method-assign]
    return rounds, cancelled_at
