"""The worker on a real queue with the stub engine: what comes out, and every way a job can leave."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest

from model.randomness import seed_of
from model.request import SamplingParams
from service.broker.base import BrokerUnavailable
from service.broker.redis import RedisGatewayBroker
from service.protocol import DoneData, Event, TokenData
from service.settings import RedisSettings
from tests.redis_fixture import redis_server, redis_settings  # noqa: F401
from tests.service.stub_engine import CARD, expected_tokens, text_of
from tests.service.worker_fixture import PICTURE, PICTURE_REF, make_job, running_worker


@pytest.fixture
async def queue(redis_settings: RedisSettings) -> AsyncIterator[RedisGatewayBroker]:  # noqa: F811
    broker = RedisGatewayBroker(redis_settings)
    await broker.start()
    yield broker
    await broker.close()


async def collect(queue: RedisGatewayBroker, job_id: str) -> list[Event]:
    async with asyncio.timeout(60), contextlib.aclosing(queue.events(job_id)) as events:
        return [event async for event in events]


def delivered(events: list[Event]) -> tuple[str, list[int]]:
    parts = [TokenData.model_validate(event.data) for event in events if event.type == "token"]
    assert all("".join(part.pieces) == part.text for part in parts)
    assert all(len(part.pieces) == len(part.token_ids) for part in parts)
    return "".join(part.text for part in parts), [token for part in parts for token in part.token_ids]


async def started(queue: RedisGatewayBroker, job_id: str) -> None:
    """Returns once the job has produced a token."""
    async with asyncio.timeout(60), contextlib.aclosing(queue.events(job_id)) as events:
        async for event in events:
            if event.type == "token":
                return


async def test_an_answer_is_whole_and_numbered(queue, redis_settings):  # noqa: F811
    job = make_job(max_tokens=20, images=(PICTURE_REF,), params={"retained_tokens": 8, "token_map": True})
    with running_worker(redis_settings) as worker:
        await queue.submit(job, {"picture": PICTURE})
        events = await collect(queue, job.id)
    expected = expected_tokens(job.prompt, 20)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert (events[0].type, events[-1].type) == ("started", "done")
    assert delivered(events) == (text_of(expected), expected)
    done = DoneData.model_validate(events[-1].data)
    assert (list(done.token_ids), done.text, done.finish_reason) == (expected, text_of(expected), "length")
    assert (done.model, done.worker_id, done.grid) == ("stub", worker.id, CARD.grid)
    assert len(done.kept_indices or ()) == 8
    (image,) = worker.stub.seen[0].images
    assert image.dtype == np.uint8
    assert image.tobytes() == PICTURE
    assert image.shape == (4, 4, 3)


async def test_counters_follow_the_answers(queue, redis_settings):  # noqa: F811
    jobs = [make_job(f"job {n}", images=(PICTURE_REF,), params={"retained_tokens": 4}) for n in range(3)]
    with running_worker(redis_settings) as worker:
        for job in jobs:
            await queue.submit(job, {"picture": PICTURE})
        for job in jobs:
            await collect(queue, job.id)
        assert worker.metric("generation_tokens_total") == 24
        assert worker.metric("image_tokens_total") == 48
        assert worker.metric("image_tokens_retained_total") == 12
        assert worker.metric("image_tokens_pruned_total") == 36
        assert worker.metric("image_token_layers_kept_total") == 12 * CARD.layers
        assert worker.metric("prompt_tokens_total", kind="text") == 15
        assert worker.metric("spec_decode_num_drafts_total") == 9
        assert worker.metric("spec_decode_num_draft_tokens_total") == 27
        assert worker.metric("spec_decode_num_accepted_tokens_total") == 18
        assert worker.metric("spec_decode_num_accepted_tokens_per_pos_total", position="0") == 9
        assert worker.metric("inter_token_latency_seconds_count") == 24 - 3  # each one's first has no gap
        assert worker.metric("request_queue_time_seconds_count") == 3


async def test_more_jobs_than_slots_are_all_answered_by_two_workers(queue, redis_settings):  # noqa: F811
    jobs = [make_job(f"job {number}") for number in range(20)]
    with running_worker(redis_settings, 0.005) as one, running_worker(redis_settings, 0.005) as two:
        for job in jobs:
            await queue.submit(job, {})
        answers = await asyncio.gather(*(collect(queue, job.id) for job in jobs))
    for job, events in zip(jobs, answers, strict=True):
        assert delivered(events)[1] == expected_tokens(job.prompt, 8)
    assert one.stub.seen
    assert two.stub.seen


async def test_nothing_is_claimed_while_the_engine_has_no_memory_for_what_it_has(queue, redis_settings):  # noqa: F811
    """Else a job would wait in one engine while another worker is idle."""
    with running_worker(redis_settings, waiting=1) as full:
        job = make_job()
        await queue.submit(job, {})
        with running_worker(redis_settings) as other:
            assert (await collect(queue, job.id))[-1].type == "done"
            assert other.stub.seen
            assert not full.stub.seen
        full.stub.waiting = 0
        after = make_job("after")
        await queue.submit(after, {})
        assert (await collect(queue, after.id))[-1].type == "done"
        assert full.stub.seen


async def test_a_refused_job_names_the_field(queue, redis_settings):  # noqa: F811
    job = make_job("refuse this")
    with running_worker(redis_settings):
        await queue.submit(job, {})
        error = (await collect(queue, job.id))[-1].data
    assert (error["type"], error["code"], error["param"]) == (
        "invalid_request_error",
        "invalid_request",
        "prompt",
    )


async def test_an_image_that_has_expired_ends_the_job(queue, redis_settings):  # noqa: F811
    job = make_job(images=(PICTURE_REF,))
    with running_worker(redis_settings):
        await queue.submit(job, {})
        assert (await collect(queue, job.id))[-1].data["code"] == "engine_error"


async def test_cancelling_frees_the_slot(queue, redis_settings):  # noqa: F811
    job = make_job("long", max_tokens=100_000)
    with running_worker(redis_settings, 0.01, max_batch=1) as worker:
        await queue.submit(job, {})
        await started(queue, job.id)
        assert await queue.cancel(job.id)
        assert (await collect(queue, job.id))[-1].data["code"] == "cancelled"
        after = make_job("after")
        await queue.submit(after, {})
        assert (await collect(queue, after.id))[-1].type == "done"
        assert worker.metric("jobs_cancelled_total") == 1


async def test_a_deadline_ends_a_running_job(queue, redis_settings):  # noqa: F811
    job = make_job("long", max_tokens=100_000, deadline_at=time.time() + 0.4)
    with running_worker(redis_settings, 0.01):
        await queue.submit(job, {})
        assert (await collect(queue, job.id))[-1].data["code"] == "deadline_exceeded"


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


async def test_a_worker_that_lost_its_lease_writes_nothing(queue, redis_settings):  # noqa: F811
    """Its keeper stops renewing once the loop stalls; then the job belongs to whoever claims it."""
    job = make_job("stalls", max_tokens=9)
    quick = redis_settings.model_copy(update={"lease_s": 0.5, "max_deliveries": 50})
    with running_worker(quick, 1.6, stall_s=0.1) as stalled:
        await queue.submit(job, {})
        async with asyncio.timeout(60):
            while not stalled.stub.seen:  # noqa: ASYNC110 - a thread, nothing to await
                await asyncio.sleep(0.01)
        stalled.worker.stop()  # it finishes what it has and claims nothing
        with running_worker(quick, 0.05) as heir:
            events = await collect(queue, job.id)
            assert heir.stub.seen
            async with asyncio.timeout(60):
                while not stalled.metric("jobs_fenced_total"):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
    assert delivered(events)[1] == expected_tokens("stalls", 9)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


async def test_heartbeats_carry_card_and_slots(queue, redis_settings):  # noqa: F811
    with running_worker(redis_settings, 0.02, drain_s=0.0) as worker:
        await queue.submit(make_job("x", max_tokens=200), {})
        async with asyncio.timeout(60):
            while not (alive := await queue.workers()) or alive[0].free_slots == 4:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    (info,) = alive
    assert (info.worker_id, info.max_slots, info.free_slots) == (worker.id, 4, 3)
    assert info.card.model_dump(mode="json") == CARD.to_dict() | {
        "grid": list(CARD.grid),
        "image": CARD.to_dict()["image"] | {"pad_color": list(CARD.image.pad_color)},
    }


async def test_a_lost_connection_delays_but_repeats_nothing(queue, redis_settings):  # noqa: F811
    job = make_job("x", max_tokens=90)
    with running_worker(redis_settings, 0.01) as worker:
        await queue.submit(job, {})
        await started(queue, job.id)
        for _ in range(5):
            await queue._client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0.03)
        events = await collect(queue, job.id)
        assert worker.error is None
    assert delivered(events)[1] == expected_tokens("x", 90)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


async def test_an_idle_worker_costs_the_server_little(queue, redis_settings):  # noqa: F811
    """At the shipped pace: fewer than four commands a second, those inside scripts included."""
    await queue._custody.stop()  # a gateway's first look is no cost of a worker
    with running_worker(redis_settings, poll_s=2.0, heartbeat_s=5.0):
        await asyncio.sleep(0.3)

        async def commands() -> int:
            return int((await queue._client.info("stats"))["total_commands_processed"])

        before, begin = await commands(), time.monotonic()
        await asyncio.sleep(3.0)
        after = await commands()
        assert (after - before - 1) / (time.monotonic() - begin) < 4
