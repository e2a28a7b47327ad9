"""Leases, fences, endings and outages: what holds when a worker, a client or the server fails."""

from __future__ import annotations

import asyncio
import time

import pytest
import redis as redis_py

from service.broker.base import BrokerUnavailable, Fenced
from service.broker.redis import RedisGatewayBroker, RedisWorkerBroker
from service.embedded_redis import EmbeddedRedis
from service.protocol import Keys
from service.settings import RedisSettings
from tests.contract.conftest import WorkerFactory, begun, claim_one, done, make_job, token
from tests.contract.test_queue import collect
from tests.redis_fixture import short_settings


async def test_a_dead_workers_job_continues_behind_the_tokens_delivered(
    gateway: RedisGatewayBroker, new_worker: WorkerFactory
):
    dying, heir = new_worker(lease_s=0.2), new_worker(lease_s=0.2)
    job = make_job()
    await gateway.submit(job, {})
    old = claim_one(dying).lease
    dying.publish(old, [token(1, 1, 7), token(1, 2, 8, 9)])
    claim = claim_one(heir)
    assert claim.job == job
    assert (claim.lease.attempt, claim.last_seq, claim.resume_token_ids) == (2, 2, (7, 8, 9))
    heir.finish(claim.lease, [token(2, 3, 10), done(2, 4)])
    events = await collect(gateway, job.id)
    assert [event.id for event in events] == ["1-1", "1-2", "2-3", "2-4"]
    assert await collect(gateway, job.id, after="1-2") == events[2:]


async def test_the_old_owner_is_fenced_everywhere(gateway: RedisGatewayBroker, new_worker: WorkerFactory):
    dying, heir = new_worker(lease_s=0.2), new_worker(lease_s=0.2)
    job = make_job()
    await gateway.submit(job, {})
    old = claim_one(dying).lease
    new = claim_one(heir).lease
    assert new.attempt == 2
    for write in (
        lambda: dying.publish(old, [token(1, 1, 7)]),
        lambda: dying.finish(old, [done(1, 1)]),
        lambda: dying.release(old),
    ):
        with pytest.raises(Fenced):
            write()
    assert dying.renew([old]) == ([old], [])
    status = await gateway.status(job.id)
    assert status is not None
    assert (status.state, status.last_seq) == ("running", 0)
    heir.finish(new, [done(2, 1)])


async def test_a_renewed_lease_is_not_reclaimed(gateway: RedisGatewayBroker, new_worker: WorkerFactory):
    owner, other = new_worker(lease_s=0.8), new_worker(lease_s=0.8)
    await gateway.submit(make_job(), {})
    lease = claim_one(owner).lease
    until = time.monotonic() + 1.6
    while time.monotonic() < until:
        assert owner.renew([lease]) == ([], [])
        assert not other.claim(1).claims
        other.wait_for_work(0.05)
    owner.finish(lease, [done(1, 1)])


async def test_cancelling_a_waiting_job_ends_it_at_once(
    gateway: RedisGatewayBroker, worker: RedisWorkerBroker
):
    job = make_job()
    await gateway.submit(job, {})
    assert await gateway.cancel(job.id)
    (event,) = await collect(gateway, job.id)
    assert (event.id, event.type, event.data["code"]) == ("0-1", "error", "cancelled")
    assert not worker.claim(1).claims
    assert not await gateway.cancel(job.id)


async def test_cancelling_a_running_job_reaches_its_owner(
    gateway: RedisGatewayBroker, worker: RedisWorkerBroker
):
    job = make_job()
    await gateway.submit(job, {})
    lease = claim_one(worker).lease
    assert not worker.publish(lease, [token(1, 1, 7)])
    assert await gateway.cancel(job.id)
    assert worker.renew([lease]) == ([], [lease])
    assert worker.publish(lease, [token(1, 2, 8)])
    worker.finish(lease, [done(1, 3)])


async def test_a_cancelled_job_of_a_dead_worker_is_dropped_at_claim(
    gateway: RedisGatewayBroker, new_worker: WorkerFactory
):
    job = make_job()
    await gateway.submit(job, {})
    claim_one(new_worker())
    await gateway.cancel(job.id)
    heir = new_worker(lease_s=0.0)
    assert heir.claim(1).cancelled == 1
    assert [event.data["code"] for event in await collect(gateway, job.id)] == ["cancelled"]


async def test_an_expired_job_costs_no_model_time(gateway: RedisGatewayBroker, worker: RedisWorkerBroker):
    job = make_job(deadline_at=time.time() - 1)
    await gateway.submit(job, {})
    batch = worker.claim(1)
    assert (len(batch.claims), batch.expired) == (0, 1)
    assert [event.data["code"] for event in await collect(gateway, job.id)] == ["deadline_exceeded"]


async def test_a_job_that_kills_its_workers_goes_to_the_dead_letters(
    gateway: RedisGatewayBroker, new_worker: WorkerFactory
):
    worker = new_worker(lease_s=0.0, max_deliveries=2)
    job = make_job()
    await gateway.submit(job, {})
    assert [begun(worker).attempt for _ in range(2)] == [1, 2]
    assert worker.claim(1).poisoned == 1
    assert [event.data["code"] for event in await collect(gateway, job.id)] == ["delivery_limit"]
    assert (await gateway.queue_stats()).dead == 1


async def test_of_several_last_chances_one_is_taken_at_a_time(
    gateway: RedisGatewayBroker, new_worker: WorkerFactory
):
    """Held by one worker, they all ended at the delivery limit with the one that killed it."""
    jobs = {job.id for job in (make_job(), make_job(), make_job())}
    for job_id in jobs:
        await gateway.submit(make_job(id=job_id), {})
    dying = new_worker(max_deliveries=2)
    assert dying.renew([claim.lease for claim in dying.claim(4).claims]) == ([], [])
    worker = new_worker(lease_s=0.0, max_deliveries=2)
    other = new_worker(lease_s=60, max_deliveries=2)
    (first,) = worker.claim(4).claims
    assert first.last_chance
    (second,) = other.claim(4).claims
    (third,) = other.claim(4).claims
    assert {claim.job.id for claim in (first, second, third)} == jobs
    assert {claim.lease.attempt for claim in (first, second, third)} == {2}


async def test_a_released_job_is_taken_at_once_and_does_not_count_as_failed(
    gateway: RedisGatewayBroker, new_worker: WorkerFactory
):
    leaving, heir = (new_worker(lease_s=60, max_deliveries=1) for _ in range(2))
    job = make_job()
    await gateway.submit(job, {})
    lease = claim_one(leaving).lease
    leaving.publish(lease, [token(1, 1, 7)])
    assert not heir.claim(1).claims
    with_wake = asyncio.create_task(asyncio.to_thread(heir.wait_for_work, 2.0))
    leaving.release(lease)
    assert await with_wake
    (claim,) = heir.claim(1).claims
    assert (claim.lease.attempt, claim.resume_token_ids) == (2, (7,))
    with pytest.raises(Fenced):
        leaving.publish(lease, [token(1, 2, 8)])


async def test_reclaim_finds_every_job_of_a_large_dead_fleet(
    gateway: RedisGatewayBroker, new_worker: WorkerFactory
):
    for _ in range(120):
        await gateway.submit(make_job(), {})
    assert len(new_worker(lease_s=60).claim(120).claims) == 120
    heir, taken = new_worker(lease_s=0.0, max_deliveries=9), set()
    for _ in range(120):
        taken |= {claim.job.id for claim in heir.claim(1).claims}
        if len(taken) == 120:
            break
    assert len(taken) > 1  # the cursor moves on instead of claiming the head again and again


async def test_the_group_is_made_again_when_it_is_gone(
    gateway: RedisGatewayBroker, worker: RedisWorkerBroker, redis_settings: RedisSettings
):
    worker.claim(1)
    jobs = Keys(redis_settings.shard).jobs
    await gateway._client.xgroup_destroy(jobs, "workers")
    await gateway.submit(make_job(), {})
    assert (await gateway.queue_stats()).waiting == 1
    assert len(worker.claim(1).claims) == 1


async def test_a_job_from_the_future_is_refused_by_name(
    gateway: RedisGatewayBroker, worker: RedisWorkerBroker
):
    job = make_job(v=2)
    await gateway.submit(job, {})
    assert not worker.claim(1).claims
    assert [event.data["code"] for event in await collect(gateway, job.id)] == ["unreadable_job"]


async def test_a_dropped_connection_is_a_pause_for_waiters(
    gateway: RedisGatewayBroker, worker: RedisWorkerBroker
):
    job = make_job()
    await gateway.submit(job, {})
    following = asyncio.create_task(collect(gateway, job.id))
    lease = claim_one(worker).lease
    for seq in range(1, 6):
        worker.publish(lease, [token(1, seq, seq)])
        await asyncio.sleep(0.02)  # lets the reader block again
        admin = redis_py.Redis.from_url(worker._settings.url.get_secret_value())
        admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        admin.close()
    worker.finish(lease, [done(1, 6)])
    assert [event.seq for event in await following] == [1, 2, 3, 4, 5, 6]


async def test_a_server_that_is_gone_is_said_quickly_and_found_again():
    server = EmbeddedRedis()
    server.start()
    settings: RedisSettings = short_settings(server.url)
    gateway, worker = RedisGatewayBroker(settings), RedisWorkerBroker(settings)
    await gateway.start()
    try:
        job = make_job()
        await gateway.submit(job, {})
        lease = claim_one(worker).lease
        worker.publish(lease, [token(1, 1, 7)])
        events = gateway.events(job.id)
        assert (await anext(events)).seq == 1
        following = asyncio.create_task(anext(events))
        server.stop(keep=True)
        begin = time.monotonic()
        for call in (
            gateway.ping(),
            gateway.submit(make_job(), {}),
            gateway.workers(),
            gateway.queue_stats(),
        ):
            with pytest.raises(BrokerUnavailable):
                await call
        for sync_call in (
            lambda: worker.claim(1),
            lambda: worker.wait_for_work(1.0),
            lambda: worker.publish(lease, []),
        ):
            with pytest.raises(BrokerUnavailable):
                sync_call()
        assert time.monotonic() - begin < 5.0
        server.start()  # empty: the gateway puts the job back, with what its reader knows of it
        heir = await asyncio.to_thread(claim_one, worker)
        assert (heir.job, heir.last_seq, heir.resume_token_ids) == (job, 1, (7,))
        attempt = heir.lease.attempt
        with pytest.raises(Fenced):
            worker.publish(lease, [token(1, 2, 8)])
        worker.publish(heir.lease, [token(attempt, 2, 8)])
        assert (await following).id == f"{attempt}-2"
        worker.finish(heir.lease, [done(attempt, 3)])
        assert [event.id async for event in events] == [f"{attempt}-3"]
        assert [event.seq for event in await collect(gateway, job.id)] == [1, 2, 3]
    finally:
        await gateway.close()
        worker.close()
        server.stop()
