"""A worker whose job the server lost and got back: it is the same job, claimed under the same number."""

from __future__ import annotations

from service.broker.redis import RedisGatewayBroker
from service.settings import RedisSettings
from tests.contract.test_lost_data import forget_claim
from tests.redis_fixture import redis_server, redis_settings  # noqa: F401
from tests.service.worker_fixture import RunningWorker, make_job


async def test_a_job_that_comes_back_meets_its_own_leftovers_in_the_engine(
    redis_settings: RedisSettings,  # noqa: F811
):
    """The engine drops what is aborted in its next round; until then it refused the job: a 400."""
    queue, running = RedisGatewayBroker(redis_settings), RunningWorker(redis_settings)
    job = make_job(max_tokens=100)
    await queue.submit(job, {})
    running.worker._turn()
    (claimed,) = running.worker._jobs.values()
    await forget_claim(queue, claimed.lease)
    for _ in range(3):
        running.worker._turn()
    (again,) = running.worker._jobs.values()
    assert (again.lease.attempt, again.lease.run != claimed.lease.run) == (1, True)
    status = await queue.status(job.id)
    assert status is not None
    assert (status.state, status.terminal) == ("running", None)
    await queue.close()
    running.broker.close()
