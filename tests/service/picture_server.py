"""A small HTTP server to fetch pictures from: it says what a test wants and keeps what it was asked."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field


def answer(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class PictureServer:
    """answers: path -> raw response. hangs: paths whose connection stays open after it."""

    port: int = 0
    answers: dict[str, bytes] = field(default_factory=dict)
    hangs: set[str] = field(default_factory=set)
    heads: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            path = head.split(" ", 2)[1]
            writer.write(self.answers.get(path, answer(status="404 Not Found")))
            await writer.drain()
            if path in self.hangs:
                await reader.read()
        writer.close()


@contextlib.asynccontextmanager
async def picture_server(context: ssl.SSLContext | None = None) -> AsyncIterator[PictureServer]:
    here = PictureServer()
    server = await asyncio.start_server(here.serve, "127.0.0.1", 0, ssl=context)
    here.port = server.sockets[0].getsockname()[1]
    try:
        yield here
    finally:
        server.close()
