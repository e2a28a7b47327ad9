"""How long a job's pictures are kept: as long as it can be claimed, and no longer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from service.broker.base import Idempotency
from service.broker.redis import RedisGatewayBroker, RedisWorkerBroker
from service.protocol import ImageRef, Job, picture_name
from tests.contract.conftest import WorkerFactory, begun, claim_one, done, make_job, own_server, token
from tests.contract.test_empty_server import restart

RAW = b"raw"


def with_picture(**fields: Any) -> tuple[Job, str]:
    job = make_job(**fields)
    name = picture_name(job.id, "ab")
    return job.model_copy(update={"images": (ImageRef(sha256=name, height=1, width=1),)}), name


async def kept(gateway: RedisGatewayBroker, name: str) -> bool:
    return bool(await gateway._client.exists(gateway._keys.blob(name)))


async def test_pictures_go_with_their_job(gateway: RedisGatewayBroker, worker: RedisWorkerBroker):
    """They stayed until the deadline, an hour later: distinct pictures filled the server meanwhile."""
    now = time.time()
    (job, name), (other, others) = with_picture(deadline_at=now + 3600), with_picture()
    for each, its in ((job, name), (other, others)):
        await gateway.submit(each, {its: RAW})
    lease = claim_one(worker).lease
    worker.publish(lease, [token(1, 1, 7)])
    assert worker.blobs([name]) == [RAW]
    worker.finish(lease, [done(1, 2)])
    assert worker.blobs([name, others]) == [None, RAW]


@pytest.mark.parametrize("end", ["cancel", "expire", "withdraw", "poison"])
async def test_pictures_go_however_the_job_ends(
    gateway: RedisGatewayBroker, new_worker: WorkerFactory, end: str
):
    now = time.time()
    job, name = with_picture(created_at=now, deadline_at=now + (0.05 if end == "expire" else 60))
    await gateway.submit(job, {name: RAW})
    assert await kept(gateway, name)
    if end == "cancel":
        await gateway.cancel(job.id)
    elif end == "expire":
        await asyncio.sleep(0.06)
        await gateway.expire(job.id)
    elif end == "withdraw":
        await gateway._withdraw(job)
    else:
        worker = new_worker(max_deliveries=1, lease_s=0.0)
        begun(worker)
        assert worker.claim(1).poisoned == 1
    assert not await kept(gateway, name)


async def test_pictures_stay_while_the_job_can_be_claimed(
    gateway: RedisGatewayBroker, new_worker: WorkerFactory
):
    job, name = with_picture()
    key = Idempotency("key", "print")
    await gateway.submit(job, {name: RAW}, key)
    repeated, again = with_picture()
    assert not await gateway.submit(job, {name: RAW}, key)
    assert not await gateway.submit(repeated, {again: RAW}, key)
    assert not await kept(gateway, again)
    worker = new_worker(lease_s=0.0)
    worker.release(claim_one(worker).lease)
    claim_one(worker)  # and dies
    lease = claim_one(worker).lease
    assert await gateway.cancel(job.id)  # it runs: a flag
    assert worker.blobs([name]) == [RAW]
    worker.finish(lease, [done(lease.attempt, 1)])
    assert worker.blobs([name]) == [None]


async def test_a_picture_of_an_older_gateways_job_is_nobodys_to_drop(
    gateway: RedisGatewayBroker, worker: RedisWorkerBroker
):
    """Its name is the bare digest: the second job has the same one, and nothing counts the two."""
    first, second = make_job(), make_job()
    for job in (first, second):
        await gateway.submit(job, {"ab": RAW})
    worker.finish(claim_one(worker).lease, [done(1, 1)])
    await gateway.cancel(second.id)
    assert worker.blobs(["ab"]) == [RAW]


async def test_a_job_that_is_put_back_brings_its_pictures_and_drops_them_again():
    async with own_server() as (server, gateway, worker):
        job, name = with_picture()
        await gateway.submit(job, {name: RAW})
        await gateway._custody.stop()
        await restart(server, gateway)
        assert not await kept(gateway, name)
        await gateway._custody.check()
        lease = claim_one(worker).lease
        assert worker.blobs([name]) == [RAW]
        worker.finish(lease, [done(1, 1)])
        assert worker.blobs([name]) == [None]
