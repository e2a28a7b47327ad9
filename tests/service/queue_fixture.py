"""The queue as a test of workers sees it: a job's events until it has started or ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from service.broker.redis import RedisGatewayBroker
from service.protocol import Event, TokenData
from service.settings import RedisSettings


@pytest.fixture
async def queue(redis_settings: RedisSettings) -> AsyncIterator[RedisGatewayBroker]:
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
