"""How long things are kept, and whose clock says so: images, deadlines, leases."""

from __future__ import annotations

import asyncio
import time

import pytest
import redis

from service.broker.redis import RedisGatewayBroker, RedisWorkerBroker
from service.protocol import Keys
from service.settings import RedisSettings
from tests.contract.conftest import WorkerFactory, claim_one, make_job, token


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


async def test_a_deadline_that_cannot_be_kept_leaves_nothing_behind(gateway: RedisGatewayBroker):
    """Its expiry was refused when its entry was in the stream: an entry without a job, for ever."""
    now = time.time()
    with pytest.raises(redis.ResponseError, match="too far away"):
        await gateway.submit(make_job(created_at=now, deadline_at=now + 1e20), {"ab": b"raw"})
    written = set(await gateway._client.keys(gateway._keys.prefix + "*"))
    assert written <= {gateway._keys.generation.encode()}


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
