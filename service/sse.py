"""Server-sent events: their encoding, heartbeats in silences, a response that notices when nobody reads.

Invariant: the source is always closed and `on_close` called, whether it ran out, failed, or the client left.
Must not know: what the events mean.
Source of the format: WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
RECANCEL_S = 1.0

MEDIA_TYPE = "text/event-stream"
# Proxies that buffer would hold every token until the end.
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def encode_event(event: str, data: str, event_id: str) -> bytes:
    """data is JSON on one line, so that it needs no splitting."""
    return f"id: {event_id}\nevent: {event}\ndata: {data}\n\n".encode()


def encode_comment(text: str) -> bytes:
    return f": {text}\n\n".encode()


async def with_heartbeat(source: AsyncGenerator[bytes, None], every_s: float) -> AsyncGenerator[bytes, None]:
    """A comment at once, and one after each `every_s` without an event."""
    async with contextlib.aclosing(source):
        yield encode_comment("queued")
        while True:
            following = asyncio.ensure_future(_next(source))
            try:
                while not (await asyncio.wait({following}, timeout=every_s))[0]:
                    yield encode_comment("waiting")
                chunk = following.result()
            finally:
                await _settle(following)
            if chunk is None:
                return
            yield chunk


async def _next(source: AsyncIterator[T]) -> T | None:
    return await anext(source, None)


async def _settle(task: asyncio.Future[T]) -> None:
    """Cancels what still runs and waits until it has cleaned up behind itself."""
    while not task.done():
        task.cancel()  # again where a library swallowed it: a client that left must not hold its slot
        await asyncio.wait({task}, timeout=RECANCEL_S)


async def until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T | None:
    """The work's result, or None if the client leaves first; then the work is cancelled and awaited.

    The work runs in the caller's own task: another one costs more than most of what it does.
    """
    watching = _Watch(receive, asyncio.current_task())
    try:
        return await work
    except asyncio.CancelledError:
        if watching.is_ours():
            return None
        raise
    finally:
        watching.end()


class _Watch:
    """Cancels the task when the client leaves."""

    def __init__(self, receive: Receive, working: asyncio.Task[Any] | None) -> None:
        if working is None:
            raise RuntimeError("no task to watch for")
        self._receive, self._working = receive, working
        self._others = working.cancelling()
        self._ours = 0
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        await until_disconnect(self._receive)
        while True:  # again where a library swallowed it: a client that left must not hold its slot
            self._ours += 1
            self._working.cancel()
            await asyncio.sleep(RECANCEL_S)

    def is_ours(self) -> bool:
        """Nobody else cancelled the task too."""
        return self._ours > 0 and self._working.cancelling() == self._others + self._ours

    def end(self) -> None:
        self._task.cancel()
        for _ in range(self._ours):
            self._working.uncancel()


class EventStream(Response):
    """Sends what `source` yields as it comes; `on_close` runs whatever happens, even if nothing was sent."""

    media_type = MEDIA_TYPE

    def __init__(
        self,
        source: AsyncGenerator[bytes, None],
        on_close: Callable[[], Awaitable[None]],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._source = source
        self._on_close = on_close
        self.init_headers({**HEADERS, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 (ASGI)
        # Listens for the disconnect whatever the ASGI version is, which starlette's own stream does not.
        try:
            async with contextlib.aclosing(self._source):
                await unless_gone(receive, self._pump(send))
        finally:
            await self._on_close()

    async def _pump(self, send: Send) -> None:
        with contextlib.suppress(OSError):  # how a server of ASGI 2.4 tells that the client left
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            async for chunk in self._source:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
