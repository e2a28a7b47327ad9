"""A server that lost some of its data, a claim or events: nothing is repeated or skipped in silence."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from service.broker.base import (
    Behind,
    Diverged,
    Fenced,
    Lease,
)
from service.broker.custody import READ_WITHIN_S
from service.broker.redis import RedisGatewayBroker, RedisWorkerBroker
from service.protocol import ATTEMPTS_APART, Event
from tests.contract.conftest import WorkerFactory, claim_one, done, make_job, own_server, token
from tests.contract.test_queue import collect


def signed(lease: Lease, event: Event) -> Event:
    """As a worker writes it: with the name of its claim."""
    return event.model_copy(update={"run": lease.run})


async def forget_claim(gateway: RedisGatewayBroker, lease: Lease) -> None:
    """What a replica looks like that became master before the claim had reached it."""
    keys, client = gateway._keys, gateway._client
    await client.hset(keys.job(lease.job_id), mapping={"state": "queued", "attempt": 0, "seq": 0})
    await client.hdel(keys.job(lease.job_id), "run")
    await client.delete(keys.events(lease.job_id))
    await client.xclaim(keys.jobs, "workers", "worker", 0, [lease.entry_id], idle=10**9)


async def test_a_forgotten_claim_does_not_give_two_workers_one_fencing_token(
    gateway: RedisGatewayBroker, new_worker: WorkerFactory
):
    """The attempt's number alone was the token: after a failover both of its owners could write."""
    one, two = new_worker(), new_worker()
    await gateway.submit(make_job(), {})
    old = claim_one(one).lease
    await forget_claim(gateway, old)
    new = claim_one(two).lease
    assert new.attempt == old.attempt
    for write in (
        lambda: one.publish(old, [token(1, 1, 7)]),
        lambda: one.finish(old, [done(1, 1)]),
        lambda: one.release(old),
    ):
        with pytest.raises(Fenced):
            write()
    assert one.renew([old]) == ([old], [])
    two.finish(new, [done(1, 1)])


async def test_a_forgotten_claim_is_put_back_behind_what_was_read(
    gateway: RedisGatewayBroker, new_worker: WorkerFactory
):
    """The client had tokens that the server did not know of; the next worker began anew, from the first."""
    one, two = new_worker(), new_worker()
    job = make_job()
    await gateway.submit(job, {})
    following = asyncio.create_task(collect(gateway, job.id))
    old = claim_one(one).lease
    one.publish(old, [signed(old, token(1, 1, 7)), signed(old, token(1, 2, 8))])
    async with contextlib.aclosing(gateway.events(job.id)) as seen:
        assert [(await anext(seen)).seq for _ in range(2)] == [1, 2]
    await forget_claim(gateway, old)
    await gateway._custody.check()
    claim = claim_one(two)
    assert (claim.last_seq, claim.resume_token_ids, claim.last_chance) == (2, (7, 8), False)
    attempt = claim.lease.attempt
    assert attempt > ATTEMPTS_APART
    two.finish(claim.lease, [signed(claim.lease, done(attempt, 3))])
    assert [event.id for event in await following] == ["1-1", "1-2", f"{attempt}-3"]


async def test_no_event_has_the_id_of_one_that_was_lost():
    """Caught once: a lost job's attempts were counted anew from what its gateway had read, here nothing; a
    client that had 1-4 from another gateway and came back was given 1-5 of the next run.
    """
    async with own_server() as (_, gateway, worker):
        other = RedisGatewayBroker(gateway._settings)
        await other.start()
        job = make_job()
        await gateway.submit(job, {})
        await gateway._custody.stop()
        seen: list[str] = []
        for _ in range(2):  # nor has it after a second loss
            lease = claim_one(worker).lease
            worker.publish(lease, [signed(lease, token(lease.attempt, seq, seq)) for seq in range(1, 6)])
            seen += [f"{lease.attempt}-{seq}" for seq in (3, 5)]
            await gateway._client.flushall()
            status = await gateway.status(job.id)
            assert status is not None
            assert status.attempt > lease.attempt
            await gateway._custody.check()
            assert await other.status(job.id) == status
        claim = claim_one(worker)
        assert not claim.last_chance
        events = [token(claim.lease.attempt, seq, seq) for seq in range(1, 5)]
        events.append(done(claim.lease.attempt, 5))
        worker.finish(claim.lease, [signed(claim.lease, event) for event in events])
        for after in seen:
            with pytest.raises(Diverged):
                await asyncio.wait_for(anext(other.events(job.id, after)), 60)
        assert [event.seq for event in await collect(other, job.id)] == [1, 2, 3, 4, 5]
        await other.close()


async def test_custody_leaves_alone_what_goes_on(gateway: RedisGatewayBroker, worker: RedisWorkerBroker):
    job = make_job()
    await gateway.submit(job, {})
    await gateway._custody.check()
    lease = claim_one(worker).lease
    await gateway._custody.check()
    worker.publish(lease, [signed(lease, token(1, 1, 7))])
    await gateway._custody.check()
    worker.release(lease)
    await gateway._custody.check()
    lease = claim_one(worker).lease
    assert lease.attempt == 2
    worker.finish(lease, [signed(lease, done(2, 2))])
    await gateway._custody.check()
    assert gateway._custody.held(job.id)  # for who polls
    gateway._custody._clock = lambda: time.monotonic() + READ_WITHIN_S
    await gateway._custody.check()
    assert not gateway._custody.held(job.id)


async def test_forgotten_events_are_asked_for_again(gateway: RedisGatewayBroker, worker: RedisWorkerBroker):
    """The worker's next event met a gap, and the error took the whole worker down."""
    job = make_job()
    await gateway.submit(job, {})
    lease = claim_one(worker).lease
    events = [signed(lease, token(1, seq, seq)) for seq in (1, 2, 3, 4)]
    worker.publish(lease, events[:3])
    await gateway._client.xdel(gateway._keys.events(job.id), "1-2", "1-3")
    await gateway._client.xtrim(gateway._keys.events(job.id), maxlen=1)
    await gateway._client.delete(gateway._keys.events(job.id))
    await gateway._client.hset(gateway._keys.job(job.id), "seq", 0)
    with pytest.raises(Behind) as behind:
        worker.publish(lease, events[3:])
    assert behind.value.have == 0
    worker.publish(lease, events)
    worker.finish(lease, [signed(lease, done(1, 5))])
    assert [event.seq for event in await collect(gateway, job.id)] == [1, 2, 3, 4, 5]


async def test_two_histories_of_one_attempt_are_an_error_not_a_mixture(
    gateway: RedisGatewayBroker, worker: RedisWorkerBroker
):
    job = make_job()
    await gateway.submit(job, {})
    lease = claim_one(worker).lease
    worker.publish(lease, [signed(lease, token(1, 1, 7))])
    async with contextlib.aclosing(gateway.events(job.id)) as events:
        assert (await anext(events)).seq == 1
        worker.publish(lease, [token(1, 2, 8).model_copy(update={"run": "another"})])
        with pytest.raises(Diverged):
            await anext(events)
    worker.finish(lease, [done(1, 3)])


async def test_trimmed_events_are_an_error_for_a_reader_who_is_behind(
    gateway: RedisGatewayBroker, new_worker: WorkerFactory
):
    """A reader slower than the bound on events skipped the trimmed ones without a word."""
    worker = new_worker(max_events=64)
    job = make_job()
    await gateway.submit(job, {})
    lease = claim_one(worker).lease
    worker.publish(lease, [token(1, seq, seq) for seq in range(1, 500)])
    with pytest.raises(Diverged):
        await collect(gateway, job.id)
    assert (await asyncio.wait_for(anext(gateway.events(job.id, after="1-498")), 10)).seq == 499
    worker.finish(lease, [done(1, 500)])


async def test_a_job_with_trimmed_events_is_not_continued(
    gateway: RedisGatewayBroker, new_worker: WorkerFactory
):
    """The next worker took the tokens that were left for all of them: the rest did not fit."""
    worker = new_worker(max_events=64, lease_s=0.0)
    job = make_job()
    await gateway.submit(job, {})
    lease = claim_one(worker).lease
    worker.publish(lease, [token(1, seq, seq) for seq in range(1, 500)])
    assert not worker.claim(1).claims
    status = await gateway.status(job.id)
    assert status is not None
    assert status.terminal is not None
    assert status.terminal.data["code"] == "events_lost"
