"""Reservations: counted at once, over all gateways; given back once, whatever ends the job."""

from __future__ import annotations

import asyncio
import time

import pytest

from service.broker.base import Full, Reservation
from service.broker.redis import RedisGatewayBroker, RedisWorkerBroker
from service.protocol import Job
from service.settings import RedisSettings
from tests.contract.conftest import WorkerFactory, begun, claim_one, done, make_job, token
from tests.contract.test_queue import collect


def asked(job: Job, limit: int = 1000, owner_limit: int | None = None) -> Reservation:
    return Reservation(job.id, job.owner, job.predicted_tokens, limit, owner_limit)


async def reserved(gateway: RedisGatewayBroker) -> int:
    return (await gateway.queue_stats()).reserved_tokens


async def test_a_burst_over_two_gateways_never_passes_the_limit(
    gateway: RedisGatewayBroker, redis_settings: RedisSettings
):
    other = RedisGatewayBroker(redis_settings)
    try:
        jobs = [make_job(predicted_tokens=100) for _ in range(40)]
        answers = await asyncio.gather(
            *((gateway, other)[i % 2].admit(asked(job)) for i, job in enumerate(jobs))
        )
    finally:
        await other.close()
    assert answers.count(None) == 10
    assert set(answers) == {None, Full("queue", 1000)}
    assert await reserved(gateway) == 1000


async def test_an_owner_has_a_limit_of_its_own(gateway: RedisGatewayBroker):
    first, second = (make_job(owner="a", predicted_tokens=60) for _ in range(2))
    assert await gateway.admit(asked(first, owner_limit=100)) is None
    assert await gateway.admit(asked(second, owner_limit=100)) == Full("owner", 60)
    assert await gateway.admit(asked(make_job(owner="b", predicted_tokens=60), owner_limit=100)) is None


@pytest.mark.parametrize("end", ["finish", "cancel", "expire", "claim-expired", "poison", "failed-submit"])
async def test_every_end_gives_back_once(gateway: RedisGatewayBroker, new_worker: WorkerFactory, end: str):
    other = make_job(predicted_tokens=7)
    assert await gateway.admit(asked(other)) is None
    passed = time.time() - 1 if "expire" in end else None
    job = make_job(predicted_tokens=100, deadline_at=passed)
    assert await gateway.admit(asked(job)) is None
    assert await reserved(gateway) == 107
    await _end(gateway, new_worker(lease_s=0.0, max_deliveries=1), job, end)
    assert await reserved(gateway) == 7
    await gateway.give_back(job.id)
    await gateway.cancel(job.id)
    stats = await gateway.queue_stats()
    assert (stats.reserved_tokens, stats.waiting_tokens) == (7, 0)


async def _end(gateway: RedisGatewayBroker, worker: RedisWorkerBroker, job: Job, end: str) -> None:
    if end == "failed-submit":
        await gateway.give_back(job.id)
        return
    await gateway.submit(job, {})
    if end == "cancel":
        await gateway.cancel(job.id)
    elif end == "expire":
        await gateway.expire(job.id)
    elif end == "claim-expired":
        assert worker.claim(1).expired == 1
    else:
        lease = begun(worker)
        if end == "finish":
            for _ in range(2):
                worker.finish(lease, [done(1, 1)])
        else:
            assert worker.claim(1).poisoned == 1
    assert (await collect(gateway, job.id))[-1].terminal


async def test_a_reservation_of_a_gateway_that_died_falls_due(
    gateway: RedisGatewayBroker, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("service.broker.redis_gateway._HOLD_MS", 0)
    assert await gateway.admit(asked(make_job(predicted_tokens=900))) is None
    monkeypatch.undo()
    async with asyncio.timeout(60):
        while await gateway.admit(asked(make_job(predicted_tokens=900))) is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await reserved(gateway) == 900


async def test_a_job_keeps_its_reservation_over_gateways_and_attempts(
    gateway: RedisGatewayBroker, new_worker: WorkerFactory
):
    job = make_job(predicted_tokens=100)
    assert await gateway.admit(asked(job)) is None
    await gateway.submit(job, {})
    await gateway.give_back(job.id)  # a gateway that believes its submit failed
    dying, heir = new_worker(lease_s=0.0), new_worker(lease_s=0.0)
    dying.publish(claim_one(dying).lease, [token(1, 1, 7)])
    lease = claim_one(heir).lease
    stats = await gateway.queue_stats()
    assert (stats.reserved_tokens, stats.waiting_tokens) == (100, 0)
    heir.release(lease)
    assert await reserved(gateway) == 100
    heir.finish(claim_one(heir).lease, [done(3, 2)])
    assert await reserved(gateway) == 0


async def test_expired_jobs_end_though_no_worker_takes_any(gateway: RedisGatewayBroker):
    """Their room is given to those that come; nobody has to claim them."""
    late = make_job(predicted_tokens=900, deadline_at=time.time() - 1)
    await gateway.submit(late, {})
    assert await gateway.admit(asked(make_job(predicted_tokens=900))) is None
    assert gateway.take_ended_waiting() == {"expired": 1}
    assert gateway.take_ended_waiting() == {}
    assert [event.data["code"] for event in await collect(gateway, late.id)] == ["deadline_exceeded"]


async def test_a_job_whose_time_has_not_come_stays(gateway: RedisGatewayBroker, worker: RedisWorkerBroker):
    job = make_job(deadline_at=time.time() + 60)
    await gateway.submit(job, {})
    await gateway.expire(job.id)
    assert claim_one(worker).job.id == job.id
    await gateway.expire(job.id)  # running: its worker's to end
    status = await gateway.status(job.id)
    assert status is not None
    assert status.state == "running"


async def test_the_wait_is_told_by_what_waits(gateway: RedisGatewayBroker, worker: RedisWorkerBroker):
    for priority in ("interactive", "batch"):
        await gateway.submit(make_job(predicted_tokens=100, priority=priority), {})
    assert (await gateway.queue_stats()).waiting_tokens == 200
    worker.finish(claim_one(worker).lease, [done(1, 1)])
    stats = await gateway.queue_stats()
    assert (stats.waiting, stats.waiting_tokens, stats.reserved_tokens) == (1, 100, 100)
