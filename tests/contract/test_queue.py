"""Submit, claim, write, follow: the queue without faults."""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import service.broker.reader
from service.broker.base import JobNotFound
from service.broker.redis import RedisGatewayBroker, RedisWorkerBroker
from service.protocol import Event, ImageRef, ModelCard, WorkerInfo
from service.settings import RedisSettings
from tests.contract.conftest import WorkerFactory, claim_one, done, make_job, token

CARD = ModelCard.model_validate(
    {"model_id": "m", "family": "llava", "image": {"height": 8, "width": 8}, "image_tokens": 4}
    | {"grid": [2, 2], "layers": 2, "max_images": 1, "max_model_len": 64}
)


async def collect(gateway: RedisGatewayBroker, job_id: str, after: str | None = None) -> list[Event]:
    async with asyncio.timeout(60), contextlib.aclosing(gateway.events(job_id, after)) as events:
        return [event async for event in events]


async def test_a_job_travels_whole_with_its_image(gateway: RedisGatewayBroker, worker: RedisWorkerBroker):
    raw = bytes(range(12))
    job = make_job(images=(ImageRef(sha256="ab", height=2, width=2),), request_id="r1")
    assert await gateway.submit(job, {"ab": raw})
    assert worker.wait_for_work(1.0)
    (claim,) = worker.claim(4).claims
    assert claim.job == job
    assert (claim.lease.attempt, claim.last_seq, claim.resume_token_ids) == (1, 0, ())
    assert worker.blobs(["ab", "missing"]) == [raw, None]


async def test_the_same_id_is_queued_once(gateway: RedisGatewayBroker, worker: RedisWorkerBroker):
    job = make_job()
    assert await gateway.submit(job, {})
    assert not await gateway.submit(job, {})
    assert len(worker.claim(4).claims) == 1
    assert not worker.claim(4).claims


async def test_a_claim_takes_no_more_than_asked_and_in_order(
    gateway: RedisGatewayBroker, worker: RedisWorkerBroker
):
    jobs = [make_job() for _ in range(5)]
    for job in jobs:
        await gateway.submit(job, {})
    taken = [claim.job.id for size in (2, 1, 8) for claim in worker.claim(size).claims]
    assert taken == [job.id for job in jobs]


async def test_many_workers_share_the_jobs_without_overlap(
    gateway: RedisGatewayBroker, new_worker: WorkerFactory
):
    jobs = [make_job() for _ in range(60)]
    for job in jobs:
        await gateway.submit(job, {})

    def take_all() -> list[str]:
        broker, ids = new_worker(lease_s=30), []
        while claims := broker.claim(2).claims:
            ids += [claim.job.id for claim in claims]
        return ids

    with ThreadPoolExecutor(4) as pool:
        taken = [job_id for future in [pool.submit(take_all) for _ in range(4)] for job_id in future.result()]
    assert sorted(taken) == sorted(job.id for job in jobs)


async def test_events_arrive_in_order_and_end_with_the_job(
    gateway: RedisGatewayBroker, worker: RedisWorkerBroker
):
    job = make_job()
    await gateway.submit(job, {})
    following = asyncio.create_task(collect(gateway, job.id))
    lease = claim_one(worker).lease
    worker.publish(lease, [token(1, 1, 7)])
    worker.publish(lease, [token(1, 2, 8), token(1, 3, 9)])
    worker.finish(lease, [token(1, 4, 10), done(1, 5)])
    events = await following
    assert [event.id for event in events] == ["1-1", "1-2", "1-3", "1-4", "1-5"]
    assert events[-1].terminal
    assert await collect(gateway, job.id, after="1-3") == events[3:]
    assert await collect(gateway, job.id, after="1-5") == []
    status = await gateway.status(job.id)
    assert status is not None
    assert (status.state, status.last_seq, status.terminal) == ("done", 5, events[-1])


async def test_a_new_waiter_does_not_wait_for_the_blocked_read(
    gateway: RedisGatewayBroker, worker: RedisWorkerBroker, monkeypatch: pytest.MonkeyPatch
):
    """The reader blocks for seconds on the streams it knows; a new one must interrupt it."""
    monkeypatch.setattr(service.broker.reader, "BLOCK_MS", 8000)
    idle, busy = make_job(), make_job()
    await gateway.submit(idle, {})
    waiting = asyncio.create_task(collect(gateway, idle.id))
    idle_lease = claim_one(worker).lease
    await gateway.submit(busy, {})
    lease = claim_one(worker).lease
    worker.finish(lease, [done(1, 1)])
    begin = time.monotonic()
    assert len(await collect(gateway, busy.id)) == 1
    assert time.monotonic() - begin < 7
    worker.finish(idle_lease, [done(1, 1)])
    assert len(await waiting) == 1


async def test_a_waiter_that_joins_an_open_read_misses_nothing(
    gateway: RedisGatewayBroker, worker: RedisWorkerBroker
):
    """The read under way began behind the first waiter's events; the second got only what that read found."""
    job = make_job()
    await gateway.submit(job, {})
    lease = claim_one(worker).lease
    worker.publish(lease, [token(1, 1, 7), token(1, 2, 8)])
    async with contextlib.aclosing(gateway.events(job.id)) as ahead:
        assert [(await anext(ahead)).seq for _ in range(2)] == [1, 2]
        await asyncio.sleep(0.05)  # the reader blocks again, behind 1-2
        gateway._reader._woken = True  # and is not woken for the second one: the open read must serve it
        with gateway._reader.waiting(job.id, (0, 0)) as late:
            worker.publish(lease, [token(1, 3, 9)])
            async with asyncio.timeout(60):
                assert [(await late.next()).seq for _ in range(3)] == [1, 2, 3]
                assert (await anext(ahead)).seq == 3
    worker.finish(lease, [done(1, 4)])


async def test_an_open_read_is_woken_once_for_all_who_come_before_it_ends(
    gateway: RedisGatewayBroker, worker: RedisWorkerBroker, monkeypatch: pytest.MonkeyPatch
):
    wakes = []
    wake = gateway._reader._wake
    monkeypatch.setattr(gateway._reader, "_wake", lambda: (wakes.append(1), wake()))
    monkeypatch.setattr(service.broker.reader, "BLOCK_MS", 600_000)  # nothing but the wake ends it
    monkeypatch.setattr(gateway._reader._line, "_timeout_s", 600)
    first, *others = jobs = [make_job() for _ in range(6)]
    for job in jobs:
        await gateway.submit(job, {})
    following = [asyncio.create_task(collect(gateway, first.id))]
    while not gateway._reader._reading:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert not wakes
    following += [asyncio.create_task(collect(gateway, job.id)) for job in others]
    await asyncio.sleep(0)
    assert wakes == [1]
    for claim in worker.claim(6).claims:
        worker.finish(claim.lease, [done(1, 1)])
    assert [len(events) for events in await asyncio.gather(*following)] == [1] * 6


async def test_one_reader_serves_many_waiters(gateway: RedisGatewayBroker, new_worker: WorkerFactory):
    worker = new_worker(lease_s=30)
    jobs = [make_job() for _ in range(100)]
    for job in jobs:
        await gateway.submit(job, {})
    following = [asyncio.create_task(collect(gateway, job.id)) for job in jobs]
    again = asyncio.create_task(collect(gateway, jobs[0].id))
    for claim in worker.claim(100).claims:
        number = jobs.index(claim.job)
        worker.finish(claim.lease, [token(1, 1, number), done(1, 2)])
    answers = await asyncio.gather(*following)
    assert [events[0].data["token_ids"] for events in answers] == [[number] for number in range(100)]
    assert await again == answers[0]


async def test_an_unknown_job_has_no_events(gateway: RedisGatewayBroker):
    with pytest.raises(JobNotFound):
        await collect(gateway, "nothing")
    assert await gateway.status("nothing") is None
    assert not await gateway.cancel("nothing")


async def test_stats_and_heartbeats(gateway: RedisGatewayBroker, worker: RedisWorkerBroker):
    assert (await gateway.queue_stats()).waiting == 0
    for _ in range(3):
        await gateway.submit(make_job(), {})
    lease = claim_one(worker).lease
    stats = await gateway.queue_stats()
    assert (stats.waiting, stats.pending, stats.dead) == (2, 1, 0)
    assert 0 <= stats.oldest_age_s < 5
    worker.finish(lease, [done(1, 1)])
    assert (await gateway.queue_stats()).pending == 0

    info = WorkerInfo(worker_id="w", started_at=1.0, card=CARD, max_slots=8, free_slots=7)
    worker.heartbeat(info, ttl_s=30)
    worker.heartbeat(info.model_copy(update={"worker_id": "brief"}), ttl_s=0.05)
    async with asyncio.timeout(60):
        while (alive := await gateway.workers()) != [info]:  # noqa: ASYNC110 - a TTL announces nothing
            await asyncio.sleep(0.02)
    assert alive == [info]
    worker.retire("w")
    assert await gateway.workers() == []


async def test_every_key_is_on_the_shard_and_expires(
    gateway: RedisGatewayBroker, worker: RedisWorkerBroker, redis_settings: RedisSettings
):
    job = make_job()
    await gateway.submit(job, {"ab": b"abc"})
    following = asyncio.create_task(collect(gateway, job.id))
    lease = claim_one(worker).lease
    worker.publish(lease, [token(1, 1, 7)])
    worker.finish(lease, [done(1, 2)])
    await following
    tag = b"{" + redis_settings.shard.encode() + b"}:"
    client = gateway._client
    ours = [key async for key in client.scan_iter(match=b"*" + redis_settings.shard.encode() + b"*")]
    assert all(key.startswith(tag) for key in ours)
    expiring = {key for key in ours if await client.ttl(key) > 0}
    assert set(ours) - expiring <= {tag + b"jobs", tag + b"wake", tag + b"generation"}
    assert await client.xlen(tag + b"jobs") == 0
