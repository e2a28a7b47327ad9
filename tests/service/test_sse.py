"""Server-sent events without a gateway: format, heartbeats, and what happens when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from service.sse import EventStream, encode_comment, encode_event, unless_gone, with_heartbeat


def test_encoding() -> None:
    assert encode_event("token", '{"a": "\\n"}', "1-2") == b'id: 1-2\nevent: token\ndata: {"a": "\\n"}\n\n'
    assert encode_comment("queued") == b": queued\n\n"


class Source:
    """Yields its chunks, then waits for ever or fails; notes whether it was closed."""

    def __init__(self, *chunks: bytes, error: Exception | None = None, endless: bool = False) -> None:
        self.closed = False
        self._chunks, self._error, self._endless = chunks, error, endless

    async def __call__(self) -> AsyncGenerator[bytes, None]:
        try:
            for chunk in self._chunks:
                yield chunk
            if self._error:
                raise self._error
            if self._endless:
                await asyncio.Event().wait()
        finally:
            self.closed = True


async def test_heartbeat_goes_first_and_fills_silence() -> None:
    source = Source(b"x", endless=True)
    beating = with_heartbeat(source(), every_s=0.01)
    seen = [await anext(beating) for _ in range(4)]
    assert seen == [b": queued\n\n", b"x", b": waiting\n\n", b": waiting\n\n"]
    await beating.aclose()
    assert source.closed


async def test_heartbeat_passes_errors_on() -> None:
    source = Source(b"x", error=RuntimeError("broke"))
    with pytest.raises(RuntimeError, match="broke"):
        _ = [chunk async for chunk in with_heartbeat(source(), every_s=1)]
    assert source.closed


class Peer:
    """An ASGI server's `receive` and `send`; the client leaves when `leave` is set."""

    def __init__(self, send_error: Exception | None = None) -> None:
        self.leave = asyncio.Event()
        self.first_chunk = asyncio.Event()
        self.sent: list[Any] = []
        self.closed = 0
        self._send_error = send_error

    async def receive(self) -> dict[str, Any]:
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if self._send_error:
            raise self._send_error
        self.sent.append(message)
        if message.get("body"):
            self.first_chunk.set()

    async def on_close(self) -> None:
        self.closed += 1

    async def run(self, source: AsyncGenerator[bytes, None]) -> None:
        await EventStream(source, self.on_close)({"type": "http"}, self.receive, self.send)


async def test_stream_runs_out() -> None:
    peer, source = Peer(), Source(b"a", b"b")
    await peer.run(source())
    assert [message.get("body") for message in peer.sent] == [None, b"a", b"b", b""]
    assert (peer.closed, source.closed) == (1, True)


async def test_client_leaves_in_mid_stream() -> None:
    peer, source = Peer(), Source(b"a", endless=True)
    running = asyncio.create_task(peer.run(source()))
    await peer.first_chunk.wait()
    peer.leave.set()
    await running
    assert (peer.closed, source.closed) == (1, True)


async def test_client_was_gone_before_the_start() -> None:
    """A source that was never started runs no `finally`: only `on_close` can give the slot back."""
    peer = Peer(send_error=OSError("closed"))
    await peer.run(Source(b"a")())
    assert peer.closed == 1


async def test_a_swallowed_cancellation_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11's `wait_for` returned an event instead of ending; the stream waited for the next one."""
    monkeypatch.setattr("service.sse.RECANCEL_S", 0.01)
    started = asyncio.Event()

    async def stubborn() -> AsyncGenerator[bytes, None]:
        started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        yield b"one more"
        await asyncio.Event().wait()

    peer = Peer()
    running = asyncio.create_task(peer.run(stubborn()))
    await started.wait()
    peer.leave.set()
    async with asyncio.timeout(60):
        await running
    assert peer.closed == 1


async def test_cancelled_from_outside() -> None:
    peer, source = Peer(), Source(b"a", endless=True)
    running = asyncio.create_task(peer.run(source()))
    await peer.first_chunk.wait()
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    assert (peer.closed, source.closed) == (1, True)


async def test_unless_gone() -> None:
    async def work() -> str:
        return "done"

    peer = Peer()
    assert await unless_gone(peer.receive, work()) == "done"
    peer.leave.set()
    assert await unless_gone(peer.receive, asyncio.Event().wait()) is None


async def test_unless_gone_leaves_anothers_cancellation_alone() -> None:
    peer = Peer()
    running = asyncio.create_task(unless_gone(peer.receive, asyncio.Event().wait()))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_who_was_left_can_go_on() -> None:
    """The cancellation is the work's, not its caller's, who still has a timeout of his own to keep."""

    async def caller() -> str:
        try:
            async with asyncio.timeout(0.01):
                assert await unless_gone(peer.receive, asyncio.Event().wait()) is None
                await asyncio.Event().wait()
        except TimeoutError:
            return "went on"
        return "was not stopped"

    peer = Peer()
    peer.leave.set()
    assert await asyncio.create_task(caller()) == "went on"
