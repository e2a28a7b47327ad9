"""A server that answers each connection with the next of its answers, byte for byte; the last one repeats."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus

from tests.service.loopback import on_loopback


def answer(status: int, body: str | bytes = b"", **headers: str) -> bytes:
    """Headers' underscores are hyphens. The connection's end ends the body."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + (body.encode() if isinstance(body, str) else body)


class OddServer:
    def __init__(self, answers: tuple[bytes, ...]) -> None:
        self._answers = list(answers)
        self.url = ""
        self.asked: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked.append(head.decode().splitlines()[0].removesuffix(" HTTP/1.1"))
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length or b"0"))
            writer.write(self._answers[0] if len(self._answers) == 1 else self._answers.pop(0))
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def odd_server(*answers: bytes) -> AsyncIterator[OddServer]:
    odd = OddServer(answers)
    async with on_loopback(odd.serve) as odd.url:
        yield odd
