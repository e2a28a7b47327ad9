"""The decoder processes: same pictures and errors as in process, and what a crash, a hang, a giant costs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import httpx
import pytest
from PIL import Image

import service.image_pool
from service.errors import TooLarge, Unavailable, UndecodableImage, Unprocessable, UnsupportedMedia
from service.image_pool import ImagePool
from service.images import ImageLimits, prepare
from service.protocol import DynamicSize, ImageSpec
from tests.service.gateway_fixture import Live, eventually
from tests.service.pictures import encoded, huge_png, noise
from tests.service.scripted_worker import ScriptedWorker
from tests.service.test_describe import PNG64
from tests.service.test_describe_live import all_events

LIMITS = ImageLimits(max_bytes=20_000_000, max_pixels=50_000_000)
SPEC = ImageSpec(height=48, width=48, fit="stretch")
SMALL = encoded(noise(64, 64), "PNG")


@contextlib.asynccontextmanager
async def pool_of(processes: int, cpu_s: float = 30.0) -> AsyncIterator[ImagePool]:
    pool = ImagePool(LIMITS, processes, cpu_s)
    try:
        yield pool
    finally:
        await pool.close()


@pytest.fixture
async def pool() -> AsyncIterator[ImagePool]:
    async with pool_of(1) as running:
        yield running


@pytest.fixture(scope="module")
def giant() -> bytes:
    """50 million pixels: as slow as a picture may be."""
    return encoded(Image.new("RGB", (8000, 6250), (30, 90, 200)), "PNG")


async def stopped(pool: ImagePool) -> int:
    """The pid of the pool's idle child, which will not take up its next picture."""
    await pool.prepare(SMALL, SPEC)
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    return pid


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


async def test_a_decoder_that_cannot_start_now_is_no_fault_of_the_picture(
    pool: ImagePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was a 500: no process, memory or file was left on the machine for a moment."""

    def full(_pipe: object) -> None:
        raise BlockingIOError("no more processes")

    with monkeypatch.context() as machine:
        machine.setattr(service.image_pool, "_start", full)
        with pytest.raises(Unavailable) as refused:
            await pool.prepare(SMALL, SPEC)
    assert refused.value.retry_after_s
    assert await pool.prepare(SMALL, SPEC) == prepare(SMALL, SPEC, LIMITS)


async def test_the_same_picture_as_in_process(pool: ImagePool) -> None:
    for data in (SMALL, encoded(noise(700, 300), "JPEG")):
        assert await pool.prepare(data, SPEC) == prepare(data, SPEC, LIMITS)


@pytest.mark.parametrize(
    ("data", "error", "code"),
    [
        (b"", UndecodableImage, "undecodable_image"),
        (SMALL[:-100], UndecodableImage, "undecodable_image"),
        (b"no picture", UnsupportedMedia, "unsupported_image_format"),
        (huge_png(20_000, 20_000), TooLarge, "image_too_large"),
    ],
    ids=["empty", "truncated", "text", "bomb"],
)
async def test_refusals_cost_no_process(pool: ImagePool, data: bytes, error: type, code: str) -> None:
    await pool.prepare(SMALL, SPEC)
    before = pool.pids
    with pytest.raises(error) as refused:
        await pool.prepare(data, SPEC)
    assert (refused.value.code, refused.value.param) == (code, "image")
    assert pool.pids == before


async def test_a_strip_is_refused_from_the_child_too(pool: ImagePool) -> None:
    """The gateway did not know the error that its decoder met, and answered 500."""
    own_size = ImageSpec(
        height=8, width=8, fit="stretch", dynamic=DynamicSize(multiple=8, min_pixels=64, max_pixels=640)
    )
    with pytest.raises(Unprocessable) as refused:
        await pool.prepare(encoded(noise(402, 2), "PNG"), own_size)
    assert (refused.value.code, refused.value.param) == ("impossible_image", "image")


async def test_no_more_than_its_processes() -> None:
    async with pool_of(2) as pool:
        await asyncio.gather(*(pool.prepare(SMALL, SPEC) for _ in range(12)))
        assert 1 <= len(pool.pids) <= 2


async def test_an_idle_child_that_died_is_not_noticed(pool: ImagePool) -> None:
    await pool.prepare(SMALL, SPEC)
    (pid,) = pool.pids
    os.kill(pid, signal.SIGKILL)
    assert (await pool.prepare(SMALL, SPEC)).height == 48
    assert pool.pids != [pid]


async def test_a_child_killed_at_work_once_costs_the_client_nothing(pool: ImagePool) -> None:
    pid = await stopped(pool)
    waiting = asyncio.create_task(pool.prepare(SMALL, SPEC))
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    assert (await waiting).height == 48
    assert pid not in pool.pids


async def test_a_picture_that_kills_two_children_is_refused_and_the_pool_lives(
    pool: ImagePool, giant: bytes
) -> None:
    waiting = asyncio.create_task(pool.prepare(giant, SPEC))
    await eventually(lambda: len(pool.pids) == 1)
    (first,) = pool.pids
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: len(pool.pids) == 1 and pool.pids != [first])
    os.kill(pool.pids[0], signal.SIGKILL)
    with pytest.raises(UndecodableImage, match="crashed"):
        await waiting
    assert (await pool.prepare(SMALL, SPEC)).height == 48


async def test_a_picture_that_takes_too_long_is_refused(
    giant: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.image_pool, "SILENCE_FACTOR", 2000)
    async with pool_of(1, cpu_s=0.05) as pool:
        with pytest.raises(UndecodableImage, match="hung"):
            await pool.prepare(giant, SPEC)
        assert pool.pids == []


async def test_a_starved_decoder_makes_no_picture_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit was time on the wall: on a machine with other work, pictures of one pixel were 422."""
    monkeypatch.setattr(service.image_pool, "SILENCE_FACTOR", 200)
    async with pool_of(1, cpu_s=0.5) as pool:
        pid = await stopped(pool)
        waiting = asyncio.create_task(pool.prepare(SMALL, SPEC))
        await asyncio.sleep(0.8)
        os.kill(pid, signal.SIGCONT)
        assert (await waiting).height == 48
        assert pool.pids == [pid]
    monkeypatch.setattr(service.image_pool, "SILENCE_FACTOR", 0)
    async with pool_of(1) as pool:
        with pytest.raises(Unavailable) as late:
            await pool.prepare(SMALL, SPEC)
        assert (late.value.status, late.value.code) == (503, "decoder_starved")


async def test_a_client_that_leaves_takes_its_child_along(pool: ImagePool) -> None:
    pid = await stopped(pool)
    waiting = asyncio.create_task(pool.prepare(SMALL, SPEC))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not is_alive(pid)
    assert (await pool.prepare(SMALL, SPEC)).height == 48


async def test_children_are_recycled(pool: ImagePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.image_pool, "MAX_PICTURES", 3)
    seen = []
    for _ in range(7):
        await pool.prepare(SMALL, SPEC)
        seen += [pid for pid in pool.pids if pid not in seen]
    assert len(seen) == 3


async def test_close_ends_the_children() -> None:
    async with pool_of(2) as pool:
        await asyncio.gather(*(pool.prepare(SMALL, SPEC) for _ in range(8)))
        pids = pool.pids
        assert all(is_alive(pid) for pid in pids)
    assert not any(is_alive(pid) for pid in pids)


async def test_a_giant_does_not_hold_the_event_loop(pool: ImagePool, giant: bytes) -> None:
    """The loop turns while 50 million pixels are decoded: it waits for a pipe, not for a codec."""
    decoding = asyncio.create_task(pool.prepare(giant, SPEC))
    turns = 0
    while not decoding.done():
        await asyncio.sleep(0.005)
        turns += 1
    assert (await decoding).width == 48
    assert turns > 3  # a loop that waits for the codec turns once


async def test_pictures_in_decoding_delay_no_stream(live: Live, worker: ScriptedWorker) -> None:
    """Not by a fast codec but by design: here decoding does not end at all until the stream has."""
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
        warm = [client.post("/v1/describe", json={"image": PNG64}) for _ in range(4)]
        assert {answer.status_code for answer in await asyncio.gather(*warm)} == {200}
        worker.hold()
        streaming = asyncio.create_task(all_events(live))
        await eventually(lambda: len(worker.jobs) == 5)
        pids = live.gateway.images.pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        uploads = [asyncio.create_task(client.post("/v1/describe", json={"image": PNG64})) for _ in pids]
        await eventually(lambda: live.gateway.images.busy == len(pids))
        worker.resume()
        events = await streaming
        assert [sent.event for sent in events] == 4 * ["token"] + ["done"]
        assert not any(upload.done() for upload in uploads)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        assert {answer.status_code for answer in await asyncio.gather(*uploads)} == {200}
