"""The idempotency key in the queue: taken with the job in one write, held as long as the job can be read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.broker.base import BrokerUnavailable, Idempotency, KeyedJob
from service.broker.redis import RedisGatewayBroker, RedisWorkerBroker
from service.protocol import Keys
from service.settings import RedisSettings
from tests.contract.conftest import WorkerFactory, claim_one, done, make_job

KEY = Idempotency(key="k", fingerprint="f")


async def test_the_first_job_has_the_key(gateway: RedisGatewayBroker, worker: RedisWorkerBroker):
    first, second = make_job(), make_job()
    assert await gateway.keyed_job("k") is None
    assert await gateway.submit(first, {}, KEY)
    assert not await gateway.submit(second, {}, KEY)
    assert await gateway.keyed_job("k") == KeyedJob(first.id, "f")
    assert await gateway.status(second.id) is None
    assert [claim.job.id for claim in worker.claim(4).claims] == [first.id]


async def test_of_many_at_once_one_is_queued(gateway: RedisGatewayBroker, worker: RedisWorkerBroker):
    jobs = [make_job() for _ in range(20)]
    added = await asyncio.gather(*(gateway.submit(job, {}, KEY) for job in jobs))
    assert sum(added) == 1
    (claim,) = worker.claim(20).claims
    assert claim.job.id == jobs[added.index(True)].id


async def test_a_repeated_submit_keeps_its_own_key(gateway: RedisGatewayBroker):
    """After a lost reply the gateway submits again: the job is known, and the key is still its own."""
    job = make_job()
    assert await gateway.submit(job, {}, KEY)
    assert not await gateway.submit(job, {}, KEY)
    assert await gateway.keyed_job("k") == KeyedJob(job.id, "f")


async def test_a_job_whose_first_reply_was_lost_is_accepted_and_held(
    gateway: RedisGatewayBroker, monkeypatch: pytest.MonkeyPatch
):
    """The repeat said "known", which was taken for another job's key: an empty server then lost the job."""
    submit, calls = gateway._submit, 0

    async def once_unheard(*args: Any) -> bool:
        nonlocal calls
        calls += 1
        added = await submit(*args)
        if calls == 1:
            raise BrokerUnavailable("the reply was lost")
        return added

    monkeypatch.setattr(gateway, "_submit", once_unheard)
    job, other = make_job(), make_job()
    assert await gateway.submit(job, {}, KEY)
    assert gateway._custody.held(job.id)
    calls = 0
    assert not await gateway.submit(other, {}, KEY)
    assert not gateway._custody.held(other.id)


async def test_the_key_expires_with_the_result(
    gateway: RedisGatewayBroker, new_worker: WorkerFactory, redis_settings: RedisSettings
):
    job, worker = make_job(), new_worker(result_ttl_s=100)
    await gateway.submit(job, {}, KEY)
    keys = Keys(redis_settings.shard)
    names = (keys.idempotency("k"), keys.job(job.id))
    before = [await gateway._client.ttl(name) for name in names]
    assert min(before) > 100
    worker.finish(claim_one(worker).lease, [done(1, 1)])
    after = [await gateway._client.ttl(name) for name in names]
    assert all(0 < ttl_s <= 100 for ttl_s in after)


async def test_the_key_of_a_lost_job_is_free(gateway: RedisGatewayBroker, redis_settings: RedisSettings):
    lost, job = make_job(), make_job()
    await gateway.submit(lost, {}, KEY)
    await gateway._client.delete(Keys(redis_settings.shard).job(lost.id))
    assert await gateway.submit(job, {}, Idempotency(key="k", fingerprint="other"))
    assert await gateway.keyed_job("k") == KeyedJob(job.id, "other")


async def test_the_status_carries_the_job(gateway: RedisGatewayBroker):
    job = make_job(request_id="r1", model="m")
    await gateway.submit(job, {})
    status = await gateway.status(job.id)
    assert status is not None
    assert status.job == job
