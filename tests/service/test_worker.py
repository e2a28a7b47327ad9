"""The worker on a real queue with the stub engine: what comes out, and every way a job can leave."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from service.protocol import DoneData
from tests.redis_fixture import redis_server, redis_settings  # noqa: F401
from tests.service.queue_fixture import collect, delivered, started
from tests.service.stub_engine import CARD, expected_tokens, text_of
from tests.service.worker_fixture import PICTURE, PICTURE_REF, make_job, running_worker


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
