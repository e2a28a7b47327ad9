"""A worker whose Redis came back empty, turned by hand so that everything happens between two rounds."""

from __future__ import annotations

import asyncio
import contextlib

from service.broker.redis import RedisGatewayBroker
from service.embedded_redis import EmbeddedRedis
from tests.redis_fixture import short_settings
from tests.service.stub_engine import expected_tokens
from tests.service.worker_fixture import RunningWorker, make_job


async def test_a_job_that_was_given_back_is_claimed_again_by_the_worker_that_still_runs_it() -> None:
    """Its attempts were counted anew, so the new claim had the number of the one whose abort waits for the
    next round: the engine knew the id and refused it, and the client was told of a bad request.
    """
    job = make_job("again", max_tokens=60)
    with EmbeddedRedis() as server:
        settings = short_settings(server.url).model_copy(update={"lease_s": 60.0})  # nobody renews it here
        gateway = RedisGatewayBroker(settings)
        await gateway.start()
        worker = RunningWorker(settings)
        try:
            await gateway.submit(job, {})
            while not worker.stub.has_work():
                await asyncio.to_thread(worker.worker._turn)
            await gateway._client.flushall()
            await gateway._custody.check()
            while worker.stub.has_work():
                await asyncio.to_thread(worker.worker._turn)
            await asyncio.to_thread(worker.worker._flush)
            assert len(worker.stub.seen) == 2
            async with asyncio.timeout(60), contextlib.aclosing(gateway.events(job.id)) as events:
                end = [event async for event in events][-1]
            assert (end.type, end.data.get("token_ids")) == ("done", expected_tokens("again", 60))
        finally:
            worker.broker.close()
            await gateway.close()
