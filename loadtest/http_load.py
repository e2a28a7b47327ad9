"""A load generator that costs little: prepared requests over kept connections, no HTTP library.

Closed (`closed`: so many at once, as fast as answers come) or open (`opened`: so many a second, whatever
the answers do; latency counts from when a request was due). Answers are read by their Content-Length.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

READ_BYTES = 1 << 20


@dataclass
class Outcome:
    latencies_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def per_s(self) -> float:
        return len(self.latencies_s) / self.seconds if self.seconds else 0.0

    def ms(self, share: float) -> float:
        ordered = sorted(self.latencies_s)
        return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2) if ordered else 0.0


def describe_request(picture: bytes, media_type: str, **fields: str) -> bytes:
    """multipart/form-data, as curl sends it."""
    edge = "twigserve-load"
    parts = [
        f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    file = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="p"\r\n'
    file += f"Content-Type: {media_type}"
    body = b"".join(
        ("".join(parts).encode(), file.encode(), b"\r\n\r\n", picture, f"\r\n--{edge}--\r\n".encode())
    )
    head = (
        f"POST /v1/describe HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={edge}\r\n\r\n"
    )
    return head.encode() + body


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=READ_BYTES))

    async def ask(self, request: bytes) -> str:
        """'' for a 200, else the status line."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith("content-length:"))
        await self._reader.readexactly(length)
        return "" if " 200" in lines[0] else lines[0]

    def close(self) -> None:
        self._writer.close()


class Load:
    def __init__(self, port: int, request: bytes) -> None:
        self._port, self._request = port, request
        self._outcome = Outcome()

    async def closed(self, total: int, at_once: int) -> Outcome:
        left = iter(range(total))
        began = time.perf_counter()
        await asyncio.gather(*(self._user(left) for _ in range(at_once)))
        self._outcome.seconds = time.perf_counter() - began
        return self._outcome

    async def _user(self, left: object) -> None:
        connection = await Connection.open(self._port)
        for _ in left:  # type: ignore[attr-defined]
            await self._one(connection, time.perf_counter())
        connection.close()

    async def opened(self, total: int, per_s: float) -> Outcome:
        idle: list[Connection] = []
        began = time.perf_counter()
        tasks = []
        for number in range(total):
            due = began + number / per_s
            if (pause := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            tasks.append(asyncio.create_task(self._borrowed(idle, due)))
        await asyncio.gather(*tasks)
        self._outcome.seconds = time.perf_counter() - began
        for connection in idle:
            connection.close()
        return self._outcome

    async def _borrowed(self, idle: list[Connection], due: float) -> None:
        connection = idle.pop() if idle else await Connection.open(self._port)
        await self._one(connection, due)
        idle.append(connection)

    async def _one(self, connection: Connection, due: float) -> None:
        error = await connection.ask(self._request)
        if error:
            self._outcome.errors.append(error)
        else:
            self._outcome.latencies_s.append(time.perf_counter() - due)
