"""What a worker writes: repeated, out of step, and of many jobs at once."""

from __future__ import annotations

import pytest
import redis as redis_py

from service.broker.base import Behind, Fenced
from service.broker.redis import RedisGatewayBroker, RedisWorkerBroker
from service.settings import RedisSettings
from tests.contract.conftest import WorkerFactory, claim_one, done, make_job, token
from tests.contract.test_queue import collect


async def test_repeating_a_write_changes_nothing(gateway: RedisGatewayBroker, worker: RedisWorkerBroker):
    """A reply can be lost after the script ran; the worker then sends the same events again."""
    job = make_job()
    await gateway.submit(job, {})
    lease = claim_one(worker).lease
    for _ in range(2):
        worker.publish(lease, [token(1, 1, 7), token(1, 2, 8)])
    for _ in range(2):
        worker.finish(lease, [token(1, 3, 9), done(1, 4)])
    assert [event.seq for event in await collect(gateway, job.id)] == [1, 2, 3, 4]
    with pytest.raises(Fenced):
        worker.finish(lease, [done(1, 5)])


async def test_many_jobs_events_go_out_in_one_write(
    gateway: RedisGatewayBroker, new_worker: WorkerFactory, redis_settings: RedisSettings
):
    """Each is answered as if it were written alone, also by a server that has forgotten the script."""
    jobs = [make_job() for _ in range(5)]
    for job in jobs:
        await gateway.submit(job, {})
    worker = new_worker()
    ends, goes_on, cancelled, gap, lost = (claim.lease for claim in worker.claim(5).claims)
    await gateway.cancel(cancelled.job_id)
    worker.release(lost)
    parcels = [
        (ends, [token(1, 1, 7), done(1, 2)]),
        (goes_on, [token(1, 1, 7)]),
        (cancelled, [token(1, 1, 7)]),
        (gap, [token(1, 2, 7)]),
        (lost, [token(1, 1, 7)]),
    ]
    with redis_py.Redis.from_url(redis_settings.url.get_secret_value()) as client:
        client.script_flush()
    for _ in range(2):
        told = worker.write(parcels)
        assert told[:3] == [False, False, True]
        assert isinstance(told[3], Behind)
        assert told[3].have == 0
        assert isinstance(told[4], Fenced)
    assert [event.seq for event in await collect(gateway, ends.job_id)] == [1, 2]
    assert worker.write([]) == []


async def test_a_gap_in_the_sequence_is_refused(gateway: RedisGatewayBroker, worker: RedisWorkerBroker):
    await gateway.submit(make_job(), {})
    lease = claim_one(worker).lease
    with pytest.raises(Behind) as behind:
        worker.publish(lease, [token(1, 3, 7)])
    assert behind.value.have == 0
    with pytest.raises(ValueError, match="gap"):
        worker.publish(lease, [token(1, 1, 7), token(1, 3, 8)])
    with pytest.raises(ValueError, match="terminal"):
        worker.finish(lease, [token(1, 1, 7)])
