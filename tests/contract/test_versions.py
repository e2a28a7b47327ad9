"""Messages of a later version: each is refused by name, and hides nothing else."""

from __future__ import annotations

import asyncio

import pytest

from service.broker.base import (
    Unreadable,
)
from service.broker.redis import RedisGatewayBroker, RedisWorkerBroker
from service.protocol import Event, WorkerInfo
from tests.contract.conftest import claim_one, done, make_job, token
from tests.contract.test_queue import CARD, collect


async def test_an_unreadable_heartbeat_hides_one_worker(
    gateway: RedisGatewayBroker, worker: RedisWorkerBroker
):
    info = WorkerInfo(worker_id="w", started_at=1.0, card=CARD, max_slots=8, free_slots=7)
    worker.heartbeat(info, ttl_s=30)
    worker.heartbeat(info.model_copy(update={"worker_id": "newer", "v": 2}), ttl_s=30)
    assert await gateway.workers() == [info]


async def test_an_unreadable_event_ends_its_own_stream_alone(
    gateway: RedisGatewayBroker, worker: RedisWorkerBroker
):
    jobs = [make_job(), make_job()]
    leases = {}
    for job in jobs:
        await gateway.submit(job, {})
        leases[job.id] = claim_one(worker).lease
    readers = [asyncio.create_task(collect(gateway, job.id)) for job in jobs]
    worker.publish(leases[jobs[0].id], [token(1, 1, 7).model_copy(update={"v": 2})])
    with pytest.raises(Unreadable):
        await readers[0]
    worker.finish(leases[jobs[1].id], [done(1, 1)])
    assert len(await readers[1]) == 1


async def test_an_unreadable_event_is_logged_without_its_words(
    gateway: RedisGatewayBroker, worker: RedisWorkerBroker, caplog: pytest.LogCaptureFixture
):
    """What the parser says of it quotes a piece of the answer."""
    job = make_job()
    await gateway.submit(job, {})
    lease = claim_one(worker).lease
    broken = Event.model_construct(v=1, seq=1, attempt=1, type="amethyst", data={}, run=lease.run)
    worker.publish(lease, [broken])
    with pytest.raises(Unreadable):
        await collect(gateway, job.id)
    (line,) = [record for record in caplog.records if record.message == "unreadable event"]
    assert line.__dict__["error"] == "ValidationError"
    assert "amethyst" not in str(line.__dict__)


async def test_an_unreadable_jobs_status_is_said_by_name(gateway: RedisGatewayBroker):
    job = make_job(v=2)
    await gateway.submit(job, {})
    with pytest.raises(Unreadable):
        await gateway.status(job.id)
