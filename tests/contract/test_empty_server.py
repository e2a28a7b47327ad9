"""A server that came back empty: what was accepted comes back whole, and is never unknown meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from service.broker.base import (
    BrokerUnavailable,
    Fenced,
    Idempotency,
    JobNotFound,
    KeyedJob,
)
from service.broker.custody import LOST_AFTER_S
from service.broker.redis import RedisGatewayBroker, RedisWorkerBroker
from service.embedded_redis import EmbeddedRedis
from service.protocol import ATTEMPTS_APART, Event, ImageRef
from tests.contract.conftest import claim_one, done, make_job, own_server, token
from tests.contract.test_queue import collect


async def restart(server: EmbeddedRedis, *brokers: RedisGatewayBroker) -> None:
    """It is empty afterwards, and every broker has met the broken connections."""
    server.stop(keep=True)
    server.start()
    for broker in brokers:
        await reached(broker)


async def reached(broker: RedisGatewayBroker) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                return await broker.ping()
            except BrokerUnavailable:
                await asyncio.sleep(0.02)


async def test_a_lost_job_comes_back_whole():
    """With its images, its idempotency key, and what is left of its time."""
    async with own_server() as (server, gateway, worker):
        now = time.time()
        job = make_job(
            images=(ImageRef(sha256="ab", height=2, width=2),), created_at=now, deadline_at=now + 90
        )
        await gateway.submit(job, {"ab": b"raw"}, Idempotency("key", "print"))
        server.stop(keep=True)
        server.start()
        gateway._custody._held[job.id].events.append(Event(seq=1, attempt=1, type="started", run="a"))
        for _ in range(3):  # once it is back, it is left where it is
            with contextlib.suppress(BrokerUnavailable):
                await gateway._custody.check()
        assert await gateway._client.xlen(gateway._keys.jobs) == 1
        status = await gateway.status(job.id)
        assert status is not None
        assert (status.state, status.attempt, status.last_seq) == ("queued", 1 + ATTEMPTS_APART, 1)
        holder = None
        async with asyncio.timeout(60):
            while holder is None:
                with contextlib.suppress(BrokerUnavailable):  # a broken connection is met once
                    holder = await gateway.keyed_job("key")
                await asyncio.sleep(0.02)
        assert (holder.job_id, holder.fingerprint) == (job.id, "print")
        claim = claim_one(worker)
        assert claim.job == job
        assert claim.expires_at is not None
        assert 30 < claim.expires_at - time.monotonic() < 90
        assert worker.blobs(["ab"]) == [b"raw"]
        worker.finish(claim.lease, [done(claim.lease.attempt, 2)])
        assert len(await collect(gateway, job.id)) == 2


async def test_another_gateways_reader_is_told_when_nobody_puts_the_job_back():
    async with own_server() as (server, gateway, worker):
        other = RedisGatewayBroker(gateway._settings)
        await other.start()
        job = make_job()
        await gateway.submit(job, {})
        worker.publish(claim_one(worker).lease, [token(1, 1, 7)])
        async with contextlib.aclosing(other.events(job.id)) as events:
            assert (await anext(events)).seq == 1  # it reads
            await gateway.close()  # and with it go its holdings
            server.stop(keep=True)
            server.start()
            with pytest.raises(JobNotFound):
                await anext(events)
        await other.close()


async def test_a_job_another_gateway_puts_back_is_not_unknown_meanwhile():
    """Its status was 404 until then: the client that polled it gave it up."""
    async with own_server() as (server, gateway, _):
        other = RedisGatewayBroker(gateway._settings)
        assert await other.status("unknown") is None
        job = make_job()
        await gateway.submit(job, {})
        await gateway._custody.stop()
        await restart(server, gateway, other)
        with pytest.raises(BrokerUnavailable, match="lost its data"):
            await other.status(job.id)
        await gateway._custody.check()
        assert await other.status(job.id) == await gateway.status(job.id)
        await other.close()


@pytest.mark.parametrize("kept", [False, True])
async def test_data_is_new_whoever_names_it(kept: bool):
    """Each gateway had one name to offer to empty data: where the same gateway named the new data, nobody saw
    that it was new, and every job not yet put back was 404 at the other gateways. Nor did anyone see that a
    server which kept its name had lost its last writes.
    """
    async with own_server() as (server, gateway, _):
        other = RedisGatewayBroker(gateway._settings)
        assert await other.status("unknown") is None  # it names the data
        await gateway._custody.check()
        job = make_job()
        await gateway.submit(job, {}, Idempotency("key", "print"))
        await gateway._custody.stop()
        generation = await other._client.get(gateway._keys.generation)
        assert generation
        await restart(server, gateway, other)
        if kept:
            await other._client.set(gateway._keys.generation, generation)
        with pytest.raises(BrokerUnavailable, match="lost its data"):
            await other.keyed_job("key")
        with pytest.raises(BrokerUnavailable, match="lost its data"):
            await other.status(job.id)
        with contextlib.suppress(JobNotFound, TimeoutError):
            async with asyncio.timeout(0.5), contextlib.aclosing(other.events(job.id)) as events:
                await anext(events)
                raise AssertionError("there is no event")
        await gateway._custody.check()
        assert await other.status(job.id) == await gateway.status(job.id)
        assert (await other.keyed_job("key")) == KeyedJob(job.id, "print")
        await other.close()


async def test_a_gateway_that_began_without_a_server_takes_nothing_for_unknown():
    async with own_server() as (server, gateway, _):
        job = make_job()
        await gateway.submit(job, {})
        server.stop(keep=True)
        late = RedisGatewayBroker(gateway._settings)
        with pytest.raises(BrokerUnavailable):
            await late._custody.check()
        server.start()
        await reached(late)
        with pytest.raises(BrokerUnavailable, match="lost its data"):
            await late.status(job.id)
        await late.close()


async def test_a_result_that_nobody_can_have_read_yet_is_computed_again():
    """A job in the background ended, its server died before the next poll: accepted, done, and then 404."""
    async with own_server() as (server, gateway, worker):
        job = make_job()
        await gateway.submit(job, {})
        worker.finish(claim_one(worker).lease, [done(1, 1)])
        await gateway._custody.check()
        await restart(server, gateway)
        await gateway._custody.check()
        status = await gateway.status(job.id)
        assert status is not None
        assert status.state == "queued"


async def test_a_result_that_has_expired_is_not_computed_again(
    gateway: RedisGatewayBroker, worker: RedisWorkerBroker
):
    """Caught once: a job that nobody followed was taken for lost, and run again and again."""
    job = make_job()
    await gateway._custody.check()
    await gateway.submit(job, {})
    worker.finish(claim_one(worker).lease, [done(1, 1)])
    await gateway._client.delete(gateway._keys.job(job.id))
    clock = gateway._custody._clock
    gateway._custody._clock = lambda: clock() + gateway._settings.result_ttl_s
    await gateway._custody.check()
    assert await gateway.status(job.id) is None
    assert gateway._custody.held(job.id) is None


async def test_a_loss_is_known_before_somebody_asks(gateway: RedisGatewayBroker):
    """Caught once: an idle gateway's doubts began with the first request that had an idempotency key."""
    await gateway._custody.check()
    await gateway._client.flushall()
    await gateway._custody.check()
    clock = gateway._custody._clock
    gateway._custody._clock = lambda: clock() + LOST_AFTER_S
    assert await gateway.keyed_job("key") is None


async def test_what_was_left_during_an_outage_is_cancelled_after_it():
    """Caught once: its client had gone, the server was away, and it was put back and run to its end."""
    async with own_server() as (server, gateway, _):
        kept, left = make_job(), make_job()
        for job in (kept, left):
            await gateway.submit(job, {})
        server.stop(keep=True)
        await gateway.abandon(left.id)
        server.start()
        await reached(gateway)
        await gateway._custody.check()
        stats = await gateway.queue_stats()
        assert stats.waiting + stats.pending == 1
        assert await gateway.status(kept.id) is not None


async def test_a_submit_whose_fate_is_unknown_is_withdrawn(
    gateway: RedisGatewayBroker, worker: RedisWorkerBroker
):
    """Its client got a 503 and asks again: the first job must not be computed for nobody."""
    job = make_job()
    await gateway._submit(job, {}, Idempotency("key", "print"))  # whose reply never came
    lease = claim_one(worker).lease
    gateway._custody.disown(job)
    await gateway._custody.check()
    assert await gateway.status(job.id) is None
    assert await gateway.keyed_job("key") is None
    assert (await gateway.queue_stats()).pending == 0
    with pytest.raises(Fenced):
        worker.publish(lease, [token(1, 1, 7)])


async def test_a_job_submitted_again_is_not_withdrawn(gateway: RedisGatewayBroker):
    job = make_job()
    await gateway._submit(job, {}, None)
    gateway._custody.disown(job)
    assert not await gateway.submit(job, {})
    await gateway._custody.check()
    assert await gateway.status(job.id) is not None
