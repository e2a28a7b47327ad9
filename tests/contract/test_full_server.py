"""A server without memory: it takes no job, and ends those it has."""

from __future__ import annotations

import pytest

from service.broker.base import (
    BrokerUnavailable,
    Idempotency,
)
from service.protocol import WorkerInfo
from tests.contract.conftest import claim_one, done, make_job, own_server, token
from tests.contract.test_queue import CARD, collect


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
