"""kill -9 of one of two workers in mid-stream: the reader gets the whole text, no token twice, none lost."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import signal
import subprocess
import time
import uuid
from collections.abc import AsyncIterator

import pytest

from service.broker.redis import RedisGatewayBroker
from service.protocol import DoneData, Event, ImageRef, ImageSpec, Job, JobParams, StartedData, TokenData
from service.settings import RedisSettings
from tests.e2e.workers import REAL, STUB, worker_processes
from tests.redis_fixture import redis_server, redis_settings  # noqa: F401
from tests.service.stub_engine import expected_tokens, text_of

pytestmark = pytest.mark.e2e


@pytest.fixture
async def queue(redis_settings: RedisSettings) -> AsyncIterator[RedisGatewayBroker]:  # noqa: F811
    broker = RedisGatewayBroker(redis_settings)
    await broker.start()
    yield broker
    await broker.close()


def new_job(prompt: str, max_tokens: int, **fields: object) -> Job:
    params = JobParams(max_tokens=max_tokens, ignore_eos=True)
    return Job.model_validate(
        {"id": uuid.uuid4().hex, "created_at": time.time(), "prompt": prompt, "params": params} | fields
    )


async def read_and_kill(
    queue: RedisGatewayBroker, job: Job, workers: dict[str, subprocess.Popen[bytes]], after_tokens: int
) -> list[Event]:
    """Kills the job's owner once it has delivered that many tokens (never, where `workers` is empty)."""
    events, owner, tokens = [], "", 0
    async with contextlib.aclosing(queue.events(job.id)) as stream:
        async for event in stream:
            events.append(event)
            if event.type == "started":
                owner = StartedData.model_validate(event.data).worker_id
            tokens += len(event.data.get("token_ids", ())) if event.type == "token" else 0
            if owner in workers and tokens >= after_tokens:
                workers.pop(owner).send_signal(signal.SIGKILL)
                after_tokens = 10**9
    return events


def delivered(events: list[Event]) -> tuple[str, list[int]]:
    parts = [TokenData.model_validate(event.data) for event in events if event.type == "token"]
    return "".join(part.text for part in parts), [token for part in parts for token in part.token_ids]


def assert_one_whole_stream(events: list[Event]) -> None:
    assert events[-1].type == "done"
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    done = DoneData.model_validate(events[-1].data)
    assert delivered(events) == (done.text, list(done.token_ids))


async def test_every_stream_of_a_killed_stub_worker_is_whole(queue, redis_settings):  # noqa: F811
    """Several jobs at once, spread over both workers, whichever of them dies."""
    async with worker_processes(STUB, 2, redis_settings, queue, ready_s=60) as workers:
        alive = dict(workers)
        jobs = [new_job(f"job {number}", 120) for number in range(12)]
        for job in jobs:
            await queue.submit(job, {})
        async with asyncio.timeout(50):
            victim, *others = [
                asyncio.create_task(read_and_kill(queue, job, alive if job is jobs[0] else {}, 20))
                for job in jobs
            ]
            streams = [await victim, *(await asyncio.gather(*others))]
        assert len(alive) == 1, "nobody was killed"
    for job, events in zip(jobs, streams, strict=True):
        assert_one_whole_stream(events)
        assert delivered(events)[1] == expected_tokens(job.prompt, 120)
        assert delivered(events)[0] == text_of(expected_tokens(job.prompt, 120))
    assert {event.attempt for event in streams[0]} == {1, 2}


@pytest.fixture(params=["tiny", "embedded"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options of `twigserve worker`: a random checkpoint (any bytes, any tokens), and the shipped one."""
    if request.param == "embedded":
        return ()
    from tests.model.tiny import Shape, TwigShape, write_base, write_twig

    folder = tmp_path_factory.mktemp("tiny")
    vlm = write_base(folder / "base", Shape(upper_scale=0.2))
    write_twig(folder / "twig", vlm, TwigShape())
    return "--model", str(folder / "base"), "--twig", str(folder / "twig")


@pytest.mark.timeout(300)  # two processes import torch
async def test_a_killed_workers_answer_continues_token_for_token(queue, redis_settings, checkpoint):  # noqa: F811
    """The real engine: the interrupted answer equals the same picture's undisturbed one."""
    settings = redis_settings.model_copy(update={"lease_s": 2.0})
    async with worker_processes((*REAL, *checkpoint), 2, settings, queue, ready_s=200) as workers:
        images, blobs = picture((await queue.workers())[0].card.image)
        calm, broken = (new_job("Describe the image.", 160, images=images) for _ in range(2))
        alive = dict(workers)
        async with asyncio.timeout(90):
            await queue.submit(calm, blobs)
            expected = await read_and_kill(queue, calm, {}, 0)
            await queue.submit(broken, blobs)
            events = await read_and_kill(queue, broken, alive, 8)
        assert len(alive) == 1, "nobody was killed"
    assert_one_whole_stream(expected)
    assert_one_whole_stream(events)
    assert delivered(events) == delivered(expected)
    assert {event.attempt for event in events} == {1, 2}


def picture(spec: ImageSpec) -> tuple[tuple[ImageRef, ...], dict[str, bytes]]:
    rows = (
        (x * y + 37 * channel) % 256
        for y in range(spec.height)
        for x in range(spec.width)
        for channel in range(3)
    )
    raw = bytes(rows)
    sha = hashlib.sha256(raw).hexdigest()
    return (ImageRef(sha256=sha, height=spec.height, width=spec.width),), {sha: raw}
