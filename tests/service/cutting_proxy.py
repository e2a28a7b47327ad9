"""A TCP proxy in front of a real gateway, whose connections a test cuts when it wants to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from tests.service.loopback import on_loopback


class CuttingProxy:
    """cut_at: cuts each connection once so many bytes came down it, as long as `cuts_left` allows it."""

    def __init__(self, upstream: str) -> None:
        self.move(upstream)
        self._writers: set[asyncio.StreamWriter] = set()
        self.url = ""
        self.connections = 0
        self.cut_at = 0
        self.cuts_left = 0

    def move(self, upstream: str) -> None:
        """Connections from now on go there."""
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 80)

    def cut(self) -> None:
        """Every open connection ends at once, as when a cable is pulled."""
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(*self._upstream)
            self._writers |= {writer, far_writer}
            await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer, down=True))
        self._writers -= {writer}
        writer.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, down: bool = False
    ) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if down and self.cuts_left and passed + len(data) > self.cut_at:
                    self.cuts_left -= 1
                    writer.write(data[: self.cut_at - passed])
                    await writer.drain()
                    break
                passed += len(data)
                writer.write(data)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def cutting_proxy(upstream: str) -> AsyncIterator[CuttingProxy]:
    proxy = CuttingProxy(upstream)
    async with on_loopback(proxy.serve) as proxy.url:
        try:
            yield proxy
        finally:
            proxy.cut()
