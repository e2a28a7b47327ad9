"""A worker that drains, crashes or loses its queue: what becomes of its jobs."""

from __future__ import annotations

import asyncio

from model.randomness import seed_of
from model.request import SamplingParams
from service.broker.base import BrokerUnavailable
from service.protocol import DoneData
from tests.redis_fixture import redis_server, redis_settings  # noqa: F401
from tests.service.queue_fixture import collect, delivered, started
from tests.service.stub_engine import expected_tokens, text_of
from tests.service.worker_fixture import make_job, running_worker


async def test_draining_finishes_what_runs_and_takes_nothing_new(queue, redis_settings):  # noqa: F811
    running, waiting = make_job("running", max_tokens=60), make_job("waiting")
    with running_worker(redis_settings, 0.01, max_batch=1) as worker:
        await queue.submit(running, {})
        await started(queue, running.id)
        await queue.submit(waiting, {})
        worker.worker.stop()
        assert (await collect(queue, running.id))[-1].type == "done"
        await asyncio.to_thread(worker.join)
        assert await queue.workers() == []
        status = await queue.status(waiting.id)
        assert status is not None
        assert status.state == "queued"


async def test_what_does_not_finish_in_time_is_given_to_another_worker(queue, redis_settings):  # noqa: F811
    long = redis_settings.model_copy(update={"lease_s": 60.0})  # only a release can hand the job over
    sampling = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "stop": ("never",)}
    job = make_job("long", max_tokens=120, params=sampling)
    with running_worker(long, 0.02, drain_s=0.0) as leaving:
        await queue.submit(job, {})
        await started(queue, job.id)
        with running_worker(long) as heir:
            leaving.worker.stop()
            events = await collect(queue, job.id)
            assert heir.stub.seen[0].resume_token_ids
            # Also the seed, which the client left open.
            assert heir.stub.seen[0].sampling == leaving.stub.seen[0].sampling
            assert heir.stub.seen[0].sampling == SamplingParams(120, seed=seed_of(job.id), **sampling)
    assert delivered(events) == (text_of(expected_tokens("long", 120)), expected_tokens("long", 120))
    assert {event.attempt for event in events} == {1, 2}
    resumed = DoneData.model_validate(events[-1].data).resumed_tokens
    assert resumed == len(delivered([event for event in events if event.attempt == 1])[1])


async def test_a_worker_leaves_a_broker_that_is_away_without_asking_for_each_job(
    queue,
    redis_settings,  # noqa: F811
    monkeypatch,
):
    """Each of its jobs waited for the whole timeout: a drain of 2 s with four jobs took 36."""
    asked: list[str] = []

    def away(*args, **_):
        asked.append(str(args))
        raise BrokerUnavailable("hung")

    jobs = [make_job(max_tokens=4000) for _ in range(4)]
    with running_worker(redis_settings, step_s=0.05, drain_s=0.0) as worker:
        for job in jobs:
            await queue.submit(job, {})
        for job in jobs:
            await started(queue, job.id)
        for name in ("release", "finish", "retire"):
            monkeypatch.setattr(worker.broker, name, away)
        worker.worker.stop()
        assert worker.join() is None
    assert len(asked) == 1


async def test_a_crash_of_the_engine_gives_its_jobs_back_until_the_limit(queue, redis_settings):  # noqa: F811
    job = make_job("crash")
    await queue.submit(job, {})
    for _ in range(redis_settings.max_deliveries):
        with running_worker(redis_settings) as worker:
            assert isinstance(await asyncio.to_thread(worker.join), RuntimeError)
    with running_worker(redis_settings) as worker:
        assert (await collect(queue, job.id))[-1].data["code"] == "delivery_limit"
        async with asyncio.timeout(60):  # the event is written before the worker counts it
            while worker.metric("jobs_poisoned_total") != 1:  # noqa: ASYNC110 - a counter has no event
                await asyncio.sleep(0.01)


async def test_a_job_that_kills_its_workers_takes_no_other_job_with_it(queue, redis_settings):  # noqa: F811
    """Redelivered together, the innocent jobs of its batch would reach the delivery limit with it."""
    poison, *innocent = [make_job(prompt, max_tokens=30) for prompt in ("crash", "a", "b", "c")]
    for job in (*innocent, poison):
        await queue.submit(job, {})
    crashes = 0
    while (await queue.status(poison.id)).state not in ("done", "error"):
        with running_worker(redis_settings) as worker:
            async with asyncio.timeout(60):
                status = await queue.status(poison.id)
                while worker.alive() and status.state not in ("done", "error"):
                    await asyncio.sleep(0.02)
                    status = await queue.status(poison.id)
            crashes += not worker.alive()
    assert crashes == redis_settings.max_deliveries
    assert (await collect(queue, poison.id))[-1].data["code"] == "delivery_limit"
    with running_worker(redis_settings):
        for job in innocent:
            assert delivered(await collect(queue, job.id))[1] == expected_tokens(job.prompt, 30)
