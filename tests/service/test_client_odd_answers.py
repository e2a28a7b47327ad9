"""The Python client where something else than the service answers, or a service of another version."""

from __future__ import annotations

import asyncio
import gzip
import itertools
from collections.abc import Callable

import pytest

from service.client import AsyncClient, ServerFailed, TokenEvent, Unreachable
from tests.service.both_clients import Both
from tests.service.odd_server import answer, odd_server
from tests.service.test_describe import PNG

MANY = 130
HTML = "<html><body>Welcome to the hotel's network</body></html>"
TOKEN = 'id: 1-2\nevent: token\ndata: {"text": "A", "token_ids": [0], "drafted": [false]%s}\n\n'
JOB = "/v1/jobs/desc-" + "0" * 32


def stream(body: str) -> bytes:
    return answer(200, body, Content_Type="text/event-stream", Content_Location=JOB)


@pytest.mark.parametrize("call", ["submit", "describe"])
async def test_a_redirect_is_told_at_once(both: Callable[..., Both], call: str) -> None:
    """It was once taken for an answer."""
    async with odd_server(answer(301, Location="https://elsewhere/v1/describe")) as odd:
        with pytest.raises(ServerFailed, match="301 Moved Permanently"):
            await both(odd.url).call(call, PNG)
    assert odd.asked == ["POST /v1/describe"]


@pytest.mark.parametrize("body", ["", HTML, "[]", "{}", '{"data": 1}', b"\xff\xfe"], ids=repr)
async def test_an_answer_that_is_none_is_an_error_of_ours(
    both: Callable[..., Both],
    body: str | bytes,
) -> None:
    async with odd_server(answer(200, body)) as odd:
        client = both(odd.url)
        with pytest.raises(ServerFailed, match="not understood"):
            await client.call("models")
        with pytest.raises(ServerFailed, match="not understood"):
            await client.call("submit", PNG)


@pytest.mark.parametrize(
    "event",
    ["event: token\ndata: {}\n\n", 'event: done\ndata: {"text": 1}\n\n', "event: done\ndata: <html>\n\n"],
    ids=repr,
)
async def test_an_event_that_is_none_ends_the_job(both: Callable[..., Both], event: str) -> None:
    async with odd_server(stream(event)) as odd:
        with pytest.raises(ServerFailed, match="not understood"):
            await both(odd.url).call("describe", PNG)
    assert odd.asked == ["POST /v1/describe", f"DELETE {JOB}"]


@pytest.mark.parametrize("data", ['{"error": "broke"}', "[1]", "broke", '{"error": null}', "null"])
async def test_an_odd_error_event_is_a_failure(both: Callable[..., Both], data: str) -> None:
    async with odd_server(stream(f"event: error\ndata: {data}\n\n")) as odd:
        with pytest.raises(ServerFailed, match="The service failed"):
            await both(odd.url).call("describe", PNG)
    assert odd.asked == ["POST /v1/describe"]


async def test_what_a_newer_service_adds_is_passed_over(both: Callable[..., Both]) -> None:
    new = 'id: 1-1\nevent: thinking\ndata: {"about": "it"}\n\n' + TOKEN % ', "colour": 1' + "retry: 5\n\n"
    async with odd_server(stream(new)) as odd:
        client = both(odd.url)
        assert await client.left_open(PNG) == TokenEvent(text="A", token_ids=[0], drafted=[False])
        await client.close()
    assert odd.asked == ["POST /v1/describe", f"DELETE {JOB}"]


async def test_a_garbled_answer_is_a_broken_connection(both: Callable[..., Both]) -> None:
    garbled = answer(200, gzip.compress(HTML.encode())[:9] + b"\xff" * 20, Content_Encoding="gzip")
    async with odd_server(garbled) as odd:
        with pytest.raises(Unreachable):
            await both(odd.url).call("models")
    assert len(odd.asked) == 5


async def test_more_streams_at_once_than_httpx_has_connections() -> None:
    """From the 101st on they waited for a connection, and failed as if the service were gone."""
    connected = itertools.count(1)
    all_there = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if next(connected) == MANY:
            all_there.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=MANY)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, AsyncClient(url) as client, asyncio.timeout(20):
        asking = [asyncio.create_task(client.wait("desc-" + "0" * 32)) for _ in range(MANY)]
        await all_there.wait()
        for one in asking:
            one.cancel()
        await asyncio.wait(asking)
