"""Many callers on one connection: each gets its own reply, or is told that it may not come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import redis

from service.broker.connection import async_client
from service.broker.line import Line, Script
from service.settings import RedisSettings


@contextlib.asynccontextmanager
async def line_to(settings: RedisSettings, timeout_s: float = 60.0) -> AsyncIterator[Line]:
    client = async_client(settings, socket_timeout=None)
    line = Line(client, timeout_s)
    try:
        yield line
    finally:
        await line.close()
        await client.aclose()


@pytest.fixture
async def line(redis_settings: RedisSettings) -> AsyncIterator[Line]:
    async with line_to(redis_settings) as open_line:
        yield open_line


async def test_each_caller_gets_its_own_reply(line: Line) -> None:
    words = [f"{number}" * (1 + 20_000 * (number % 3)) for number in range(50)]
    replies = await asyncio.gather(*(line.ask("ECHO", word) for word in words))
    assert replies == [word.encode() for word in words]


async def test_an_error_is_its_own_callers(line: Line) -> None:
    before, wrong, behind = await asyncio.gather(
        line.ask("ECHO", "a"), line.ask("NONSENSE"), line.ask("ECHO", "b"), return_exceptions=True
    )
    assert (before, behind) == (b"a", b"b")
    assert isinstance(wrong, redis.ResponseError)
    good, bad = await line.ask_all((("PING",), ("NONSENSE",)))
    assert good == b"PONG"
    assert isinstance(bad, redis.ResponseError)


async def test_who_leaves_takes_no_reply_but_its_own(line: Line) -> None:
    key = line_key()
    leaving = asyncio.create_task(line.ask("BLPOP", key, 0.3))
    await asyncio.sleep(0.05)
    staying = asyncio.create_task(line.ask("ECHO", "mine"))
    leaving.cancel()
    assert await staying == b"mine"


async def test_a_script_that_the_server_forgot(line: Line) -> None:
    script = Script("return {KEYS[1], ARGV[1]}")
    for _ in range(2):
        await line.ask("SCRIPT", "FLUSH")
        assert await line.run(script, "k", "v") == [b"k", b"v"]


async def test_a_lost_connection_fails_what_is_due_and_nothing_later(
    line: Line, redis_settings: RedisSettings
) -> None:
    own = await line.ask("CLIENT", "ID")
    due = asyncio.create_task(line.ask("BLPOP", line_key(), 60))
    async with line_to(redis_settings) as other:
        while b"blpop" not in await other.ask("CLIENT", "LIST", "ID", own):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await other.ask("CLIENT", "KILL", "ID", own)
    with pytest.raises(redis.ConnectionError):
        await due
    assert await line.ask("ECHO", "again") == b"again"
    assert await line.ask("CLIENT", "ID") != own


async def test_a_silent_server_is_a_lost_one(redis_settings: RedisSettings) -> None:
    async with line_to(redis_settings, timeout_s=0.3) as line:
        own = await line.ask("CLIENT", "ID")
        due = [asyncio.create_task(line.ask(*command)) for command in (("BLPOP", line_key(), 60), ("PING",))]
        for waiting in due:
            with pytest.raises(redis.TimeoutError):
                await waiting
    async with line_to(redis_settings) as line:
        assert await line.ask("CLIENT", "ID") != own


async def test_closing_ends_who_waits(redis_settings: RedisSettings) -> None:
    async with line_to(redis_settings) as line:
        due = asyncio.create_task(line.ask("BLPOP", line_key(), 60))
        await asyncio.sleep(0.05)
    with pytest.raises(redis.ConnectionError):
        await due


def line_key() -> str:
    return "line:nothing-here"
