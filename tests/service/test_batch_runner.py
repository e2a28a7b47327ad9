"""Who runs a batch, and which: several runners on one real store, with lines that answer as a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from service.batch_runner import CLAIM_S, BatchRunner
from service.batches import Batches, BatchLimits
from service.broker.base import BrokerUnavailable
from service.broker.batches import RedisBatchStore
from service.callers import Caller
from service.errors import TooBusy
from service.gateway import Gateway
from service.metrics import GatewayMetrics
from service.schemas_batch import BatchBody, BatchError, BatchObject
from service.settings import GatewaySettings, RedisSettings
from tests.redis_fixture import redis_server, redis_settings  # noqa: F401
from tests.service.gateway_fixture import eventually

LIMITS = BatchLimits(max_lines=100, max_bytes=100_000, ttl_s=1000, max_open=100, store_bytes=10**8)
OWNER = Caller("o")


@pytest.fixture
async def store(redis_settings: RedisSettings) -> AsyncIterator[RedisBatchStore]:  # noqa: F811
    running = RedisBatchStore(redis_settings)
    yield running
    await running.aclose()


def lines(count: int) -> bytes:
    body = {"method": "POST", "url": "/v1/describe", "body": {"image": "aGk="}}
    return b"\n".join(json.dumps({"custom_id": f"c{n}"} | body).encode() for n in range(count))


async def create(
    store: RedisBatchStore, content: bytes, caller: Caller = OWNER, limits: BatchLimits = LIMITS
) -> BatchObject:
    batches = Batches(store, limits)
    file = await batches.take_file(caller.name, "f", content)
    return await batches.create(caller, BatchBody(input_file_id=file.id, endpoint="/v1/describe"))


class NothingQueued:
    async def keyed_job(self, key: str) -> None: ...


class Runner(BatchRunner):
    """asked: the lines, by their custom id. answers: what a line waits for."""

    def __init__(self, store: RedisBatchStore, answers: Callable[[], Awaitable[Any]]) -> None:
        self.metrics = GatewayMetrics()
        about = {"settings": GatewaySettings(), "metrics": self.metrics, "broker": NothingQueued()}
        gateway = cast("Gateway", SimpleNamespace(**about))
        super().__init__(gateway, store, 1000, 0.02, max_running=2)
        self.asked: list[str] = []
        self._answers = answers

    async def _answer(self, *about: Any) -> tuple[str, dict[str, Any]]:
        self.asked.append(about[-2].custom_id)
        await self._answers()
        return "stop", {}

    async def look_once(self) -> None:
        await self._take_open()
        await asyncio.wait(self._running.values(), timeout=30) if self._running else None


async def at_once() -> None: ...


async def never() -> None:
    await asyncio.Event().wait()


async def test_a_runner_that_lost_its_claim_leaves_the_next_ones_alone(store: RedisBatchStore) -> None:
    """It deleted the claim of whoever had taken over, and a third one began the same batch."""
    batch = await create(store, lines(3))
    name = f"o/{batch.id}"
    first, second = Runner(store, never), Runner(store, never)
    await first._take_open()
    await eventually(lambda: len(first.asked) == 3)
    await store._client.delete(store._key("runner", name))  # its claim has run out
    assert await store.take(name, second._id, CLAIM_S)
    await asyncio.wait(first._running.values(), timeout=30)
    assert not await store.take(name, "third", CLAIM_S)
    assert await store.take(name, second._id, CLAIM_S)


async def test_a_cancelled_batch_that_could_not_be_closed_runs_no_further(store: RedisBatchStore) -> None:
    """The next look found it among the open ones and ran the rest."""
    batch = await create(store, lines(8))
    runner = Runner(store, never)

    async def away(batch_id: str) -> None:
        raise BrokerUnavailable("away")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "close_batch", away)
        await runner._take_open()
        await eventually(lambda: bool(runner.asked))
        await Batches(store, LIMITS).cancel("o", batch.id)
        await asyncio.wait(runner._running.values(), timeout=30)
    assert await store.open_batches() == [f"o/{batch.id}"]
    after = Runner(store, at_once)
    await after.look_once()
    assert (after.asked, await store.open_batches()) == ([], [])
    assert (await Batches(store, LIMITS).batch("o", batch.id)).status == "cancelled"


async def test_a_cancelled_batch_waits_for_no_turn(store: RedisBatchStore) -> None:
    """Caught once: it waited behind the running ones, and then all of its lines were run."""
    runner = Runner(store, never)
    for _ in range(2):
        await create(store, lines(1))
    await runner._take_open()
    batch = await create(store, lines(8))
    await Batches(store, LIMITS).cancel("o", batch.id)
    await runner._take_open()
    await eventually(lambda: len(runner.asked) == 2)
    async with asyncio.timeout(30):
        while (await Batches(store, LIMITS).batch("o", batch.id)).status != "cancelled":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert len(runner.asked) == 2
    await runner.stop()


async def test_what_another_runner_ended_runs_no_further(store: RedisBatchStore) -> None:
    """Its claim had lapsed for a moment, and the next one, which ended it, was done by then."""
    batch = await create(store, lines(8))
    runner = Runner(store, never)
    await runner._take_open()
    await eventually(lambda: bool(runner.asked))
    await store.move(f"o/{batch.id}", "cancelled", 1, "in_progress")
    await asyncio.wait(runner._running.values(), timeout=30)
    assert runner._running[f"o/{batch.id}"].done()


async def test_a_batch_whose_runner_died_while_it_was_cancelled_runs_no_further(
    store: RedisBatchStore,
) -> None:
    batch = await create(store, lines(8))
    await store.move(f"o/{batch.id}", "cancelling", 1, "in_progress")
    runner = Runner(store, at_once)
    await runner.look_once()
    assert (runner.asked, await store.open_batches()) == ([], [])
    assert (await Batches(store, LIMITS).batch("o", batch.id)).status == "cancelled"


async def test_the_good_lines_of_a_refused_batch_never_run(store: RedisBatchStore) -> None:
    """It was among the open batches for a moment, and for good where the gateway died in it."""

    async def died(batch_id: str) -> None:
        raise BrokerUnavailable("the gateway died here")

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Exception):
        patch.setattr(store, "close_batch", died)
        assert (await create(store, lines(2) + b"\n{}")).status == "failed"
    assert await store.open_batches() == []


async def test_a_gateway_runs_a_few_batches_at_once_and_each_owners_in_turn(store: RedisBatchStore) -> None:
    """It ran every open batch at once, each with its whole file in memory."""
    of_many = [await create(store, lines(1), Caller("many")) for _ in range(4)]
    of_one = await create(store, lines(1), Caller("one"))
    runner = Runner(store, at_once)
    order: list[str] = []
    while await store.open_batches():
        await runner._take_open()
        assert len(runner._running) <= 2
        order += runner._running
        await asyncio.wait(runner._running.values(), timeout=30)
    assert f"one/{of_one.id}" in order[:2]
    assert sorted(order) == sorted([f"one/{of_one.id}", *(f"many/{batch.id}" for batch in of_many)])


async def test_files_take_no_more_than_their_part_of_the_server(store: RedisBatchStore) -> None:
    """Fifty of them filled it for a day, for everybody. One key may take half."""
    small = 60_000  # counts as 64 KiB
    batches = Batches(store, replace(LIMITS, store_bytes=4 * 64 * 1024))
    mine = [await batches.take_file("o", "f", bytes(small).replace(b"\0", b"x")) for _ in range(2)]
    with pytest.raises(TooBusy) as full:
        await batches.take_file("o", "f", b"x")
    assert (full.value.code, full.value.retry_after_s) == ("files_full", 60)
    for _ in range(2):
        await batches.take_file("other", "f", b"x")
    with pytest.raises(TooBusy):
        await batches.take_file("third", "f", b"x")
    await batches.delete_file("o", mine[0].id)
    assert await batches.take_file("third", "f", b"x")


async def test_an_owner_has_so_many_unfinished_batches(store: RedisBatchStore) -> None:
    limits = replace(LIMITS, max_open=2)
    for _ in range(2):
        await create(store, lines(1), limits=limits)
    with pytest.raises(TooBusy) as full:
        await create(store, lines(1), limits=limits)
    assert (full.value.status, full.value.code) == (429, "batches_full")
    await create(store, lines(1), Caller("other"), limits=limits)


async def test_many_lines_are_checked_beside_the_event_loop(store: RedisBatchStore) -> None:
    """The gateway stood still for as long as the whole file took."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    def slow(*_: object) -> list[BatchError]:
        threading.Event().wait(0.2)
        return []

    ticking = asyncio.create_task(tick())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.batches.faults", slow)
        file = await Batches(store, LIMITS).take_file("o", "f", lines(1))
        before = ticks
        await Batches(store, LIMITS).create(OWNER, BatchBody(input_file_id=file.id, endpoint="/v1/describe"))
    ticking.cancel()
    assert ticks - before > 100


async def test_what_is_known_of_a_file_is_told_without_its_content(store: RedisBatchStore) -> None:
    """Twenty megabytes were read for a few fields."""
    batches = Batches(store, LIMITS)
    file = await batches.take_file("o", "f", b"{}")

    async def content(file_id: str) -> bytes:
        raise AssertionError("it was read")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "content", content)
        assert await batches.file("o", file.id) == file
