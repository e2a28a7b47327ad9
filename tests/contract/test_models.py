"""Several models on one queue: a job is run by a worker of the model it was checked against, and no other."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from service.broker.redis import RedisGatewayBroker, RedisWorkerBroker
from service.protocol import Job
from service.settings import RedisSettings
from tests.contract.conftest import claim_one, done, make_job


@pytest.fixture
def workers(redis_settings: RedisSettings) -> Any:
    settings = redis_settings.model_copy(update={"lease_s": 0.3})
    brokers = {model: RedisWorkerBroker(settings, model) for model in ("llava", "qwen", "a|b")}
    yield brokers
    for broker in brokers.values():
        broker.close()


def claimed(worker: RedisWorkerBroker, limit: int = 10) -> list[str]:
    return [claim.job.id for claim in worker.claim(limit).claims]


async def test_each_model_gets_its_own_in_order(gateway: RedisGatewayBroker, workers: Any) -> None:
    jobs = [make_job(model=("llava", "qwen", "a|b")[number % 3]) for number in range(12)]
    for job in jobs:
        await gateway.submit(job, {})
    for model, worker in workers.items():
        assert claimed(worker) == [job.id for job in jobs if job.model == model]
    stats = await gateway.queue_stats()
    assert (stats.waiting, stats.pending) == (0, 12)


async def test_a_backlog_of_another_model_is_not_in_the_way(
    gateway: RedisGatewayBroker, workers: Any
) -> None:
    for _ in range(30):
        await gateway.submit(make_job(model="llava"), {})
    mine = make_job(model="qwen", priority="batch")
    await gateway.submit(mine, {})
    assert claimed(workers["qwen"], 2) == [mine.id]
    assert (await gateway.queue_stats()).waiting == 30


async def test_a_job_that_names_no_model_is_anybodys(gateway: RedisGatewayBroker, workers: Any) -> None:
    job = make_job()
    await gateway.submit(job, {})
    assert workers["qwen"].wait_for_work(5.0)
    assert claimed(workers["qwen"]) == [job.id]


async def test_a_job_wakes_a_worker_of_its_model_alone(gateway: RedisGatewayBroker, workers: Any) -> None:
    qwen = asyncio.create_task(asyncio.to_thread(workers["qwen"].wait_for_work, 1.0))
    await gateway.submit(make_job(model="llava"), {})
    assert await asyncio.to_thread(workers["llava"].wait_for_work, 5.0)
    assert await qwen is False


async def test_lapsed_and_released_jobs_stay_with_their_model(
    gateway: RedisGatewayBroker, workers: Any
) -> None:
    """More of them than the other model's worker has slots: they neither run there nor block it."""
    jobs = [make_job(model="llava") for _ in range(6)]
    for job in jobs:
        await gateway.submit(job, {})
    claims = workers["llava"].claim(6).claims
    workers["llava"].release(claims[0].lease)
    mine = make_job(model="qwen")
    await gateway.submit(mine, {})
    found: list[str] = []
    until = time.monotonic() + 1.0  # past the leases
    while time.monotonic() < until:
        found += claimed(workers["qwen"], 2)
        await asyncio.sleep(0.05)
    assert set(found) == {mine.id}  # again and again, as its own lease runs out
    assert set(claimed(workers["llava"], 6)) == {job.id for job in jobs}


async def test_a_released_job_goes_on_with_its_model(gateway: RedisGatewayBroker, workers: Any) -> None:
    job = make_job(model="llava")
    await gateway.submit(job, {})
    first = claim_one(workers["llava"])
    workers["llava"].release(first.lease)
    assert claimed(workers["qwen"]) == []
    assert workers["llava"].wait_for_work(5.0)
    second = claim_one(workers["llava"])
    workers["llava"].finish(second.lease, [done(second.lease.attempt, 1)])
    status = await gateway.status(job.id)
    assert status is not None
    assert status.state == "done"


async def test_a_job_whose_model_is_gone_ends_at_its_deadline(
    gateway: RedisGatewayBroker, workers: Any
) -> None:
    job = make_job(model="retired", deadline_at=time.time() + 0.2)
    await gateway.submit(job, {})
    async with asyncio.timeout(60):
        while (status := await gateway.status(job.id)) is not None and status.state != "error":
            assert claimed(workers["llava"]) == []
            await asyncio.sleep(0.05)
    assert status is not None
    assert status.terminal is not None
    assert status.terminal.data["code"] == "deadline_exceeded"


async def test_what_its_own_model_cannot_end_is_ended_by_another(
    gateway: RedisGatewayBroker, workers: Any
) -> None:
    """Caught once: cancelled or out of time, it was `running` for hours and kept its key's tokens."""
    late = make_job(model="llava", deadline_at=time.time() + 1.0)
    cancelled, running = make_job(model="llava"), make_job(model="llava")
    for job in (late, cancelled, running):
        await gateway.submit(job, {})
    assert len(claimed(workers["llava"])) == 3  # and its only worker dies
    await gateway.cancel(cancelled.id)

    async def state(job: Job) -> str | None:
        status = await gateway.status(job.id)
        return status and status.state

    async with asyncio.timeout(60):
        while await state(late) != "error" or await state(cancelled) != "error":
            assert claimed(workers["qwen"]) == []
            await asyncio.sleep(0.05)
    assert await state(running) == "running"
