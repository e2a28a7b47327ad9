"""Who runs a batch, and which: several runners on one real store, with lines that answer as a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from service.batch_runner import CLAIM_S, BatchRunner
from service.batches import Batches, BatchLimits
from service.broker.base import BrokerUnavailable
from service.broker.batches import RedisBatchStore
from service.callers import Caller
from service.gateway import Gateway
from service.schemas_batch import BatchBody, BatchObject
from service.settings import GatewaySettings, RedisSettings
from tests.redis_fixture import redis_server, redis_settings  # noqa: F401
from tests.service.gateway_fixture import eventually

LIMITS = BatchLimits(max_lines=100, max_bytes=100_000, ttl_s=1000)
OWNER = Caller("o")


@pytest.fixture
async def store(redis_settings: RedisSettings) -> AsyncIterator[RedisBatchStore]:  # noqa: F811
    running = RedisBatchStore(redis_settings)
    yield running
    await running.aclose()


def lines(count: int) -> bytes:
    body = {"method": "POST", "url": "/v1/describe", "body": {"image": "aGk="}}
    return b"\n".join(json.dumps({"custom_id": f"c{n}"} | body).encode() for n in range(count))


async def create(store: RedisBatchStore, content: bytes, caller: Caller = OWNER) -> BatchObject:
    batches = Batches(store, LIMITS)
    file = await batches.take_file(caller.name, "f", content)
    return await batches.create(caller, BatchBody(input_file_id=file.id, endpoint="/v1/describe"))


class Runner(BatchRunner):
    """asked: the lines, by their custom id. answers: what a line waits for."""

    def __init__(self, store: RedisBatchStore, answers: Callable[[], Awaitable[Any]]) -> None:
        gateway = cast("Gateway", SimpleNamespace(settings=GatewaySettings()))
        super().__init__(gateway, store, 1000, 0.02)
        self.asked: list[str] = []
        self._answers = answers

    async def _answer(self, *about: Any) -> dict[str, Any]:
        self.asked.append(about[-2].custom_id)
        await self._answers()
        return {}

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


async def test_the_good_lines_of_a_refused_batch_never_run(store: RedisBatchStore) -> None:
    """It was among the open batches for a moment, and for good where the gateway died in it."""

    async def died(batch_id: str) -> None:
        raise BrokerUnavailable("the gateway died here")

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Exception):
        patch.setattr(store, "close_batch", died)
        assert (await create(store, lines(2) + b"\n{}")).status == "failed"
    assert await store.open_batches() == []
