"""docker/nginx.conf in a real nginx, its upstreams replaced by servers of the test."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from service.app import max_body_bytes
from service.errors import TooLarge, Unavailable
from service.settings import GatewaySettings
from tests.deploy.topology import GATEWAYS, NGINX, free_port, nginx_command, nginx_config

pytestmark = pytest.mark.skipif(NGINX is None, reason="no nginx on this machine")

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[int]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await answer(reader, writer)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def balanced(folder: Path, *gateways: int) -> AsyncIterator[httpx.AsyncClient]:
    """A client of nginx before these two ports."""
    port = free_port()
    config = nginx_config(folder, port, dict(zip(GATEWAYS, gateways, strict=True)))
    process = await asyncio.create_subprocess_exec(
        *nginx_command(config), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(10):
            while not await connects(port):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield client
    finally:
        process.terminate()
        await process.wait()


async def connects(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads a request of known length whole, answers with that length."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
    await reader.readexactly(length)
    body = str(length).encode()
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


def test_nginx_accepts_the_configuration(tmp_path: Path) -> None:
    config = nginx_config(tmp_path, free_port(), {name: free_port() for name in GATEWAYS})
    done = subprocess.run([str(NGINX), "-t", "-c", str(config)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


async def test_each_event_passes_as_it_comes(tmp_path: Path) -> None:
    seen = asyncio.Event()

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        writer.write(b"data: 1\n\n")
        await writer.drain()
        await seen.wait()
        writer.write(b"data: 2\n\n")

    async with (
        serving(stream) as one,
        serving(stream) as two,
        balanced(tmp_path, one, two) as client,
        client.stream("GET", "/v1/stream") as response,
    ):
        chunks = response.aiter_raw()
        assert await anext(chunks) == b"data: 1\n\n"
        seen.set()
        assert await anext(chunks) == b"data: 2\n\n"


async def test_a_dead_gateway_costs_no_request(tmp_path: Path) -> None:
    async with serving(ok) as alive, balanced(tmp_path, free_port(), alive) as client:
        answers = [await client.post("/v1/describe", content=b"12345") for _ in range(8)]
    assert {(answer.status_code, answer.text) for answer in answers} == {(200, "5")}


async def test_no_gateway_is_a_503_of_the_services_shape(tmp_path: Path) -> None:
    async with balanced(tmp_path, free_port(), free_port()) as client:
        answer = await client.post("/v1/describe", content=b"12345")
    assert answer.status_code == Unavailable.status
    assert answer.headers["Retry-After"] == "5"
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json()["error"].keys() == {"message", "type", "code", "param"}


async def test_bodies_are_limited_just_over_what_a_gateway_takes(tmp_path: Path) -> None:
    limit = max_body_bytes(GatewaySettings())
    async with serving(ok) as one, serving(ok) as two, balanced(tmp_path, one, two) as client:
        taken = await client.post("/v1/describe", content=b"\0" * limit)
        refused = await client.post("/v1/describe", content=b"\0" * int(1.1 * limit))
    assert (taken.status_code, taken.text) == (200, str(limit))
    assert refused.status_code == TooLarge.status
    assert refused.json()["error"]["code"] == TooLarge.code
    assert refused.json()["error"]["type"] == TooLarge.kind


async def test_metrics_stay_inside(tmp_path: Path) -> None:
    async with serving(ok) as one, serving(ok) as two, balanced(tmp_path, one, two) as client:
        assert (await client.get("/metrics")).status_code == 404
        assert (await client.get("/livez")).status_code == 200
