"""Clients that send slowly, too much, or nothing, or do not read: closed, and nothing is held for them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from service.http_server import KEEP_ALIVE_S, MAX_HEAD_BYTES
from service.settings import GatewaySettings
from tests.service.gateway_fixture import Live, eventually, in_process, on_a_port
from tests.service.scripted_worker import ScriptedWorker
from tests.service.test_describe import post_form

QUICK_S = 0.4
REQUEST = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def connection(live: Live) -> AsyncIterator[Connection]:
    host, port = live.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


async def closed_after_s(reader: asyncio.StreamReader) -> float:
    began = time.monotonic()
    async with asyncio.timeout(60):
        with contextlib.suppress(ConnectionError):
            while await reader.read(65_536):
                pass
    return time.monotonic() - began


@pytest.mark.parametrize("sent", [b"", b"GET", REQUEST[:-2]])
async def test_a_head_that_does_not_come_ends_the_connection(settings: GatewaySettings, sent: bytes) -> None:
    async with on_a_port(settings, head_timeout_s=QUICK_S) as live, connection(live) as (reader, writer):
        writer.write(sent)
        assert await closed_after_s(reader) >= 0.5 * QUICK_S


async def trickle_until_closed(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drop: bytes
) -> None:
    closing = asyncio.create_task(closed_after_s(reader))
    async with asyncio.timeout(60):
        while not closing.done():
            with contextlib.suppress(ConnectionError):
                writer.write(drop)
                await writer.drain()
            await asyncio.wait({closing}, timeout=QUICK_S / 8)


async def test_a_head_that_trickles_gains_no_time(settings: GatewaySettings) -> None:
    async with on_a_port(settings, head_timeout_s=QUICK_S) as live, connection(live) as (reader, writer):
        writer.write(b"GET /livez HTTP/1.1\r\n")
        await trickle_until_closed(reader, writer, b"X: y\r\n")


async def test_the_second_head_of_a_connection_has_the_same_time(settings: GatewaySettings) -> None:
    async with on_a_port(settings, head_timeout_s=QUICK_S) as live, connection(live) as (reader, writer):
        writer.write(REQUEST)
        assert b" 200 " in await reader.readline()
        writer.write(b"GET /livez HT")
        await closed_after_s(reader)


async def test_an_idle_connection_and_a_long_answer_are_no_slow_heads(
    settings: GatewaySettings, worker: ScriptedWorker
) -> None:
    worker.hold()
    async with (
        on_a_port(settings, head_timeout_s=3 * QUICK_S) as live,
        httpx.AsyncClient(base_url=live.url, timeout=60) as client,
    ):
        asking = asyncio.create_task(post_form(client))
        await asyncio.wait({asking}, timeout=4 * QUICK_S)
        worker.resume()
        assert (await asking).status_code == 200
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(4 * QUICK_S):
                await asyncio.Event().wait()
        assert (await client.get("/livez")).status_code == 200


@contextlib.asynccontextmanager
async def answered_early(live: Live, body_bytes: int) -> AsyncIterator[Connection]:
    """By a 405, of whose request the body is still to come."""
    async with connection(live) as (reader, writer):
        writer.write(f"POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: {body_bytes}\r\n\r\n".encode())
        await reader.readuntil(b"HTTP/1.1 405 ")
        yield reader, writer


async def test_the_rest_of_an_answered_body_is_no_head(settings: GatewaySettings) -> None:
    """Caught once: it was counted and timed as one. An upload was reset before its answer could be read, and
    a connection that lay idle behind a short body was closed long before its time.
    """
    part = b"x" * MAX_HEAD_BYTES
    async with (
        on_a_port(settings, head_timeout_s=QUICK_S) as live,
        answered_early(live, 4 * len(part)) as (reader, writer),
    ):
        for parts in (3, 1):
            writer.write(parts * part)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2 * QUICK_S):
                    await asyncio.Event().wait()
        writer.write(REQUEST)
        async with asyncio.timeout(60):
            await reader.readuntil(b"HTTP/1.1 200 ")


async def test_an_answered_body_that_trickles_gains_no_time(settings: GatewaySettings) -> None:
    quick = settings.model_copy(update={"body_timeout_s": QUICK_S})
    async with on_a_port(quick) as live, answered_early(live, 10_000) as (reader, writer):
        await trickle_until_closed(reader, writer, b"x")


async def test_half_a_head_behind_an_answered_body_is_timed(settings: GatewaySettings) -> None:
    async with (
        on_a_port(settings, head_timeout_s=QUICK_S) as live,
        answered_early(live, 1) as (reader, writer),
    ):
        writer.write(b"xGET /li")
        assert await closed_after_s(reader) < KEEP_ALIVE_S


async def test_an_idle_connection_behind_an_answered_body_is_closed(settings: GatewaySettings) -> None:
    """uvicorn puts its timer out when more of the body comes, and lights it no more."""
    async with on_a_port(settings) as live:
        live.server.config.timeout_keep_alive = 1
        async with answered_early(live, 1) as (reader, writer):
            writer.write(b"x")
            assert await closed_after_s(reader) > 0.5


async def test_a_head_without_end_is_431_and_a_broken_one_400(settings: GatewaySettings) -> None:
    async with on_a_port(settings) as live:
        async with connection(live) as (reader, writer):
            writer.write(b"GET /livez HTTP/1.1\r\n")
            for _ in range(MAX_HEAD_BYTES // 1000 + 2):
                writer.write(b"X-Filler: " + b"y" * 1000 + b"\r\n")
                await asyncio.sleep(0)
            status, body = await answer(reader)
            assert status in (400, 431)  # h11 does not tell a long head from a broken one
            assert body["error"]["code"] in ("head_too_large", "invalid_http")
        async with connection(live) as (reader, writer):
            writer.write(b"NONSENSE\x00\r\n\r\n")
            status, body = await answer(reader)
            assert (status, body["error"]["type"]) == (400, "invalid_request_error")


UPLOADS = {"/v1/files": "multipart/form-data; boundary=x", "/v1/batches": "application/json"}


def begun(path: str) -> bytes:
    """A request whose body of nine bytes does not come."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {UPLOADS[path]}\r\nContent-Length: 9\r\n"
    return (head + "Connection: close\r\n\r\n-").encode()


@pytest.mark.parametrize("path", UPLOADS)
async def test_files_and_batches_have_a_time_to_arrive(settings: GatewaySettings, path: str) -> None:
    """Only what asks the model had one: a file could be sent as slowly as one liked."""
    quick = settings.model_copy(update={"body_timeout_s": QUICK_S})
    async with on_a_port(quick) as live, connection(live) as (reader, writer):
        writer.write(begun(path))
        status, body = await answer(reader)
        assert (status, body["error"]["code"]) == (408, "body_timeout")
        assert live.gateway.admission.in_flight == 0


@pytest.mark.parametrize("path", UPLOADS)
async def test_files_and_batches_count_as_open_requests(settings: GatewaySettings, path: str) -> None:
    async with on_a_port(settings.model_copy(update={"max_open_requests": 1})) as live:
        async with (
            connection(live) as (_, writer),
            httpx.AsyncClient(base_url=live.url, timeout=60) as client,
        ):
            writer.write(begun(path))
            await eventually(lambda: live.gateway.admission.in_flight == 1)
            refused = await client.post(path, json={})
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "gateway_full")
        await eventually(lambda: live.gateway.admission.in_flight == 0)


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, dict[str, str]]]:
    async with asyncio.timeout(60):
        text = (await reader.read()).decode()
    head, _, body = text.partition("\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


async def test_who_does_not_read_is_let_go(settings: GatewaySettings) -> None:
    """Asks for the page's largest picture again and again and reads nothing of it."""
    async with on_a_port(settings, stall_timeout_s=QUICK_S) as live:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            host, port = live.url.removeprefix("http://").split(":")
            client.connect((host, int(port)))
            client.settimeout(5)
            asked = b"GET /static/samples/bees.png HTTP/1.1\r\nHost: x\r\n\r\n"
            client.sendall(asked * 64)
            connections = live.server.server_state.connections
            await eventually(lambda: len(connections) == 1)
            async with asyncio.timeout(60):
                while connections:  # noqa: ASYNC110 - nothing announces an abort
                    await asyncio.sleep(0.02)


async def test_no_other_site_may_ask_unless_it_is_named(settings: GatewaySettings) -> None:
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    async with in_process(settings) as client:
        assert "access-control-allow-origin" not in (await client.get("/livez", headers=preflight)).headers
        assert (await client.options("/v1/describe", headers=preflight)).status_code == 405
    named = settings.model_copy(update={"cors_origins": ("https://a.example",)})
    async with in_process(named) as client:
        allowed = await client.options("/v1/describe", headers=preflight)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        assert "access-control-allow-credentials" not in allowed.headers
        other = await client.options("/v1/describe", headers=preflight | {"Origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_the_line_breaks_of_a_form_are_those_of_its_writer(
    client: httpx.AsyncClient, worker: ScriptedWorker
) -> None:
    """Browsers send CRLF; a stop string of JSON and the same one of a form must mean the same."""
    answer = await post_form(client, prompt="One\r\ntwo", stop="a\r\nb")
    assert answer.status_code == 200
    assert (worker.jobs[0].prompt, worker.jobs[0].params.stop) == ("One\ntwo", ("a\nb",))
