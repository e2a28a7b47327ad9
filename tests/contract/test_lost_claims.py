"""Claims whose replies never arrive: their jobs wait a lease for it, and are held for nobody's failure."""

from __future__ import annotations

import asyncio

import pytest

from service.broker.redis import RedisGatewayBroker, RedisWorkerBroker
from tests.contract.conftest import WorkerFactory, begun, claim_one, done, make_job, token


def lose_a_reply(broker: RedisWorkerBroker) -> None:
    """The script runs, and the worker knows nothing of it."""
    assert len(broker.claim(1).claims) == 1


async def test_a_job_that_nobody_began_is_never_given_up(
    gateway: RedisGatewayBroker, new_worker: WorkerFactory
):
    """Three lost replies, as in an outage, and it was dead though no worker had seen it."""
    worker = new_worker(lease_s=0.0, max_deliveries=3)
    job = make_job()
    await gateway.submit(job, {})
    for _ in range(7):
        lose_a_reply(worker)
    claim = claim_one(worker)
    assert (claim.lease.attempt, claim.last_chance) == (8, False)
    worker.finish(claim.lease, [done(8, 1)])
    assert (await gateway.queue_stats()).dead == 0


@pytest.mark.parametrize("how", ["renew", "publish"])
async def test_whoever_was_heard_of_is_counted(
    gateway: RedisGatewayBroker, new_worker: WorkerFactory, how: str
):
    worker = new_worker(lease_s=0.0, max_deliveries=3)
    await gateway.submit(make_job(), {})
    for seq in (1, 2):
        lose_a_reply(worker)
        if how == "renew":
            begun(worker)
        else:
            lease = claim_one(worker).lease
            worker.publish(lease, [token(lease.attempt, seq, 7)])
    lose_a_reply(worker)
    claim = claim_one(worker)
    assert claim.last_chance
    worker.renew([claim.lease])
    assert worker.claim(1).poisoned == 1


async def test_an_older_workers_claim_is_counted(gateway: RedisGatewayBroker, new_worker: WorkerFactory):
    """It says nothing of its claim: a job that kills such workers must be given up all the same."""
    worker = new_worker(lease_s=0.0, max_deliveries=1)
    job = make_job()
    await gateway.submit(job, {})
    lose_a_reply(worker)
    claim_one(worker)
    await gateway._client.hset(gateway._keys.job(job.id), "run", "an older script's claim")
    assert worker.claim(1).poisoned == 1


async def test_of_several_lost_last_chances_none_is_counted_twice(
    gateway: RedisGatewayBroker, new_worker: WorkerFactory
):
    """One that is offered again, since another has its last chance, is looked at a second time."""
    dying = new_worker(lease_s=0.0, max_deliveries=2)
    for _ in range(2):
        await gateway.submit(make_job(), {})
    dying.renew([claim.lease for claim in dying.claim(2).claims])
    for _ in range(4):
        assert len(dying.claim(2).claims) == 1
    begun_again = 0
    async with asyncio.timeout(20):
        while (await gateway.queue_stats()).dead < 2:
            for claim in dying.claim(2).claims:
                dying.renew([claim.lease])
                begun_again += 1
            assert begun_again <= 2
