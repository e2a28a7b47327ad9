"""Fixture: the sync and the async client in turn, behind one async face."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

import pytest

from service.client import AsyncClient, Client, Description, Retry, TokenEvent

Asleep = Callable[[float], None]


class Both:
    """The two clients behind one async face; `asleep` is called instead of each wait."""

    def __init__(self, kind: str, url: str, asleep: Asleep, retry: Retry) -> None:
        async def asleep_async(wait_s: float) -> None:
            asleep(wait_s)

        self.sync = Client(url, retry=retry, sleep=asleep) if kind == "sync" else None
        self.aio = AsyncClient(url, retry=retry, sleep=asleep_async) if kind == "async" else None
        self.streams: list[Any] = []

    async def call(self, name: str, *args: Any, **options: Any) -> Any:
        if self.sync is not None:
            return await asyncio.to_thread(getattr(self.sync, name), *args, **options)
        return await getattr(self.aio, name)(*args, **options)

    async def stream(self, *args: Any, **options: Any) -> list[TokenEvent | Description]:
        if self.sync is not None:
            return await asyncio.to_thread(lambda: list(self.sync.stream(*args, **options)))  # type: ignore[union-attr]
        assert self.aio is not None
        return [event async for event in self.aio.stream(*args, **options)]

    async def first_of(self, *args: Any, **options: Any) -> None:
        """Drops the stream behind its first event."""
        if self.sync is not None:
            events = self.sync.stream(*args, **options)
            await asyncio.to_thread(next, events)
            await asyncio.to_thread(events.close)
            return
        assert self.aio is not None
        stream = self.aio.stream(*args, **options)
        await anext(stream)
        await stream.aclose()

    async def left_open(self, *args: Any, **options: Any) -> TokenEvent | Description:
        """The first event of a stream that nobody closes."""
        stream = (self.sync or self.aio).stream(*args, **options)  # type: ignore[union-attr]
        self.streams.append(stream)
        if isinstance(stream, Generator):
            return await asyncio.to_thread(next, stream)
        return await anext(stream)

    async def close(self) -> None:
        if self.sync is not None:
            await asyncio.to_thread(self.sync.close)
        if self.aio is not None:
            await self.aio.aclose()


@pytest.fixture(params=["sync", "async"])
async def both(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Both]]:
    made: list[Both] = []

    def make(url: str, asleep: Asleep = lambda _wait_s: None, retry: Retry | None = None) -> Both:
        made.append(Both(request.param, url, asleep, retry or Retry()))
        return made[-1]

    yield make
    for one in made:
        await one.close()
