"""A server that lost some or all of its data, is full, or spoke to someone newer: nothing is repeated,
nothing is skipped in silence, and what was accepted comes back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from service.broker.base import (
    Behind,
    BrokerUnavailable,
    Diverged,
    Fenced,
    Idempotency,
    JobNotFound,
    Lease,
    Unreadable,
)
from service.broker.redis import RedisGatewayBroker, RedisWorkerBroker
from service.embedded_redis import EmbeddedRedis
from service.protocol import Event, ImageRef, Keys, WorkerInfo
from service.settings import RedisSettings
from tests.contract.conftest import WorkerFactory, claim_one, done, make_job, token
from tests.contract.test_queue import CARD, collect
from tests.redis_fixture import short_settings


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


@contextlib.asynccontextmanager
async def own_server() -> AsyncIterator[tuple[EmbeddedRedis, RedisGatewayBroker, RedisWorkerBroker]]:
    with EmbeddedRedis() as server:
        settings = short_settings(server.url)
        gateway, worker = RedisGatewayBroker(settings), RedisWorkerBroker(settings)
        await gateway.start()
        try:
            yield server, gateway, worker
        finally:
            await gateway.close()
            worker.close()


# --- a claim, or events, that the server forgot -------------------------------------------------------


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
    assert (claim.lease.attempt, claim.last_seq, claim.resume_token_ids) == (2, 2, (7, 8))
    two.finish(claim.lease, [signed(claim.lease, done(2, 3))])
    assert [event.id for event in await following] == ["1-1", "1-2", "2-3"]


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
    assert gateway._custody.held(job.id)
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


# --- a server that came back empty ----------------------------------------------------------------------


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
        assert (status.state, status.attempt, status.last_seq) == ("queued", 1, 1)
        holder = None
        async with asyncio.timeout(20):
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
        worker.finish(claim.lease, [done(2, 2)])
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
        server.stop(keep=True)
        server.start()
        with pytest.raises(BrokerUnavailable):
            await other.status(job.id)
        with contextlib.suppress(BrokerUnavailable):
            await gateway._custody.check()
        await gateway._custody.check()
        assert await other.status(job.id) == await gateway.status(job.id)
        await other.close()


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


# --- a full server --------------------------------------------------------------------------------------


async def test_a_full_server_takes_no_job_and_ends_those_it_has():
    async with own_server() as (_, gateway, worker):
        running, waiting, refused = make_job(), make_job(), make_job()
        for job in (running, waiting):
            await gateway.submit(job, {"ab": b"raw"})
        lease = claim_one(worker).lease
        await gateway._client.config_set("maxmemory", 1)
        before = set(await gateway._client.keys("*"))
        with pytest.raises(BrokerUnavailable):
            await gateway.submit(refused, {"cd": bytes(1000)}, Idempotency("key", "print"))
        with pytest.raises(BrokerUnavailable):  # also where only the job itself is new
            await gateway.submit(refused, {"ab": b"raw"})
        assert set(await gateway._client.keys("*")) == before
        info = WorkerInfo(worker_id="w", started_at=1.0, card=CARD, max_slots=8, free_slots=7)
        worker.heartbeat(info, ttl_s=30)
        assert await gateway.workers() == [info]
        assert await gateway.cancel(running.id)
        assert worker.publish(lease, [token(1, 1, 7)])
        assert worker.renew([lease]) == ([], [lease])
        worker.finish(lease, [done(1, 2)])
        assert len(await collect(gateway, running.id)) == 2
        claim = claim_one(worker)
        assert claim.job == waiting
        worker.release(claim.lease)
        assert await gateway.cancel(waiting.id)
        assert [event.data["code"] for event in await collect(gateway, waiting.id)] == ["cancelled"]
        await gateway._client.config_set("maxmemory", 0)
        assert await gateway.submit(refused, {"cd": bytes(1000)})


# --- images, deadlines, leases --------------------------------------------------------------------------


async def test_a_second_job_with_the_same_image_never_shortens_its_life(gateway: RedisGatewayBroker):
    """The image of a job that waits was given the other job's shorter deadline, and was gone."""
    now = time.time()
    long, short = (make_job(created_at=now, deadline_at=now + left_s) for left_s in (5000, 5))
    ttls = []
    for job in (short, long, short.model_copy(update={"id": "another"})):
        await gateway.submit(job, {"ab": b"raw"})
        ttls.append(await gateway._client.ttl(gateway._keys.blob("ab")))
    assert ttls[0] <= 65
    assert min(ttls[1:]) > 4900


@pytest.mark.parametrize("skew_s", [-7200, 7200])
async def test_a_gateways_wrong_clock_moves_no_deadline(
    gateway: RedisGatewayBroker, worker: RedisWorkerBroker, skew_s: int
):
    """Its deadlines were compared with the server's clock: an hour behind, every job had expired."""
    then = time.time() + skew_s
    job = make_job(created_at=then, deadline_at=then + 60)
    await gateway.submit(job, {})
    status = await gateway.status(job.id)
    assert status is not None
    assert status.left_s == pytest.approx(60, abs=5)
    claim = claim_one(worker)
    assert claim.expires_at == pytest.approx(time.monotonic() + 60, abs=5)
    assert 0 <= claim.waited_s < 5


async def test_a_job_outlives_the_usual_time_if_its_deadline_does(
    redis_settings: RedisSettings, new_worker: WorkerFactory
):
    """The job's record expired while it waited, and its entry was dropped without an end."""
    settings = redis_settings.model_copy(update={"job_ttl_s": 10})
    gateway, worker = RedisGatewayBroker(settings), new_worker(job_ttl_s=10)
    now = time.time()
    job = make_job(created_at=now, deadline_at=now + 1000)
    await gateway.submit(job, {"ab": b"raw"})
    keys = Keys(settings.shard)
    lease = claim_one(worker).lease
    worker.publish(lease, [token(1, 1, 7)])
    worker.renew([lease])
    for name in (keys.job(job.id), keys.blob("ab"), keys.events(job.id)):
        assert await gateway._client.ttl(name) > 900
    await gateway.close()


async def test_an_outage_costs_no_lease(redis_settings: RedisSettings):
    """Nobody could renew while the server was away; whoever came back first took everyone's jobs."""
    settings = redis_settings.model_copy(update={"lease_s": 1.0})
    owner, other = RedisWorkerBroker(settings), RedisWorkerBroker(settings)
    gateway = RedisGatewayBroker(settings)
    await gateway.submit(make_job(), {})
    lease = claim_one(owner).lease
    other._away_since = time.monotonic()  # as after a call that found nobody
    await asyncio.sleep(1.2)
    assert not other.claim(1).claims
    assert owner.renew([lease]) == ([], [])
    assert not other.claim(1).claims
    assert claim_one(other).lease.attempt == 2  # a lease's time later it is a lease again
    await gateway.close()
    owner.close()
    other.close()


# --- others of a later version --------------------------------------------------------------------------


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


async def test_an_unreadable_jobs_status_is_said_by_name(gateway: RedisGatewayBroker):
    job = make_job(v=2)
    await gateway.submit(job, {})
    with pytest.raises(Unreadable):
        await gateway.status(job.id)
