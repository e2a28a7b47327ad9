"""The Python client, sync and async, against a gateway on a port: answers, jobs, cut connections, retries."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from service.client import (
    Conflict,
    DeadlineExceeded,
    Description,
    NotFound,
    Refused,
    Retry,
    ServerFailed,
    Unavailable,
    Unreachable,
)
from service.protocol import ErrorData
from service.settings import GatewaySettings
from tests.service.both_clients import Both
from tests.service.cutting_proxy import cutting_proxy
from tests.service.gateway_fixture import Live, eventually, on_a_port
from tests.service.scripted_worker import WORDS, ScriptedWorker, failing
from tests.service.test_describe import PNG

TEXT = "".join(WORDS)


async def test_an_answer(live: Live, worker: ScriptedWorker, both: Callable[..., Both]) -> None:
    answer = await both(live.url).call(
        "describe", PNG, prompt="What is it?", max_tokens=9, quality="balanced", include="token_map"
    )
    assert (answer.text, answer.model, answer.finish_reason) == (TEXT, "scripted", "stop")
    assert answer.token_map.grid == (6, 6)
    (job,) = worker.jobs
    assert (job.prompt, job.params.max_tokens, job.params.retained_tokens) == ("What is it?", 9, 16)


async def test_a_stream_is_rounds_and_then_the_answer(
    live: Live, worker: ScriptedWorker, both: Callable[..., Both]
) -> None:
    *rounds, last = await both(live.url).stream(PNG)
    assert [part.text for part in rounds] == list(WORDS)
    assert isinstance(last, Description)
    assert last.text == TEXT


async def test_pictures_come_as_paths_bytes_and_files(
    live: Live, worker: ScriptedWorker, both: Callable[..., Both], tmp_path: Path
) -> None:
    (tmp_path / "picture.png").write_bytes(PNG)
    client = both(live.url)
    for picture in (tmp_path / "picture.png", str(tmp_path / "picture.png"), io.BytesIO(PNG), [PNG, PNG]):
        assert (await client.call("describe", picture)).text == TEXT
    assert [len(job.images) for job in worker.jobs] == [1, 1, 1, 2]


# --- jobs ---


async def test_a_job_is_asked_for_watched_and_awaited(
    live: Live, worker: ScriptedWorker, both: Callable[..., Both]
) -> None:
    client = both(live.url)
    worker.hold()
    job = await client.call("submit", PNG)
    assert job.status in ("queued", "running")
    worker.resume()
    assert (await client.call("wait", job.id)).text == TEXT
    assert (await client.call("job", job.id)).status == "completed"
    assert [model["id"] for model in await client.call("models")] == ["scripted"]


async def test_a_cancelled_job_says_so_to_who_waits(
    live: Live, worker: ScriptedWorker, both: Callable[..., Both]
) -> None:
    client = both(live.url)
    worker.hold()
    job = await client.call("submit", PNG)
    await eventually(lambda: bool(worker.jobs))
    await client.call("cancel", job.id)
    with pytest.raises(Conflict) as raised:
        await client.call("wait", job.id)
    assert raised.value.code == "cancelled"


# --- connections that break ---


@pytest.mark.parametrize("cut_at", [0, 40, 500, 620, 700, 800, 900, 1000])
async def test_cut_at_any_byte_the_answer_is_the_same(
    live: Live, worker: ScriptedWorker, both: Callable[..., Both], cut_at: int
) -> None:
    """Within the head, within an event, between two: no event twice, none missing, one job."""
    async with cutting_proxy(live.url) as proxy:
        proxy.cut_at, proxy.cuts_left = cut_at, 2
        *rounds, last = await both(proxy.url).stream(PNG)
        assert proxy.connections >= 2
    assert [part.text for part in rounds] == list(WORDS)
    assert isinstance(last, Description)
    assert last.text == TEXT
    assert len(worker.jobs) == 1


async def test_an_answer_goes_on_when_its_gateway_stops(
    live: Live, worker: ScriptedWorker, both: Callable[..., Both], settings: GatewaySettings
) -> None:
    """The stopping gateway ends the stream in an error, which was once taken for the answer's own."""
    worker.hold()
    async with on_a_port(settings) as other, cutting_proxy(live.url) as proxy:

        def asleep(_wait_s: float) -> None:
            proxy.move(other.url)
            worker.resume()

        asking = asyncio.create_task(both(proxy.url, asleep).stream(PNG))
        await eventually(lambda: bool(worker.jobs))
        live.gateway.drain()
        live.gateway.release()
        *rounds, last = await asking
    assert [part.text for part in rounds] == list(WORDS)
    assert isinstance(last, Description)
    assert len(worker.jobs) == 1


async def test_what_stays_broken_is_given_up(
    live: Live, worker: ScriptedWorker, both: Callable[..., Both]
) -> None:
    async with cutting_proxy(live.url) as proxy:
        proxy.cut_at, proxy.cuts_left = 0, 100
        waits: list[float] = []
        with pytest.raises(Unreachable):
            await both(proxy.url, waits.append, Retry(attempts=3)).call("describe", PNG)
    assert len(waits) == 3
    assert waits == sorted(waits)


async def test_nobody_there(both: Callable[..., Both]) -> None:
    with pytest.raises(Unreachable):
        await both("http://127.0.0.1:9", retry=Retry(attempts=1)).call("models")


# --- refusals and retries ---


async def test_a_wait_is_as_long_as_the_service_asks(
    live: Live, both: Callable[..., Both], settings: GatewaySettings
) -> None:
    """No worker is ready: 503 with Retry-After; then one is, and the same call answers."""
    waits: list[float] = []
    with ScriptedWorker(settings.redis) as late:
        late.heartbeat(draining=True)

        def asleep(wait_s: float) -> None:
            waits.append(wait_s)
            late.heartbeat()

        assert (await both(live.url, asleep).call("describe", PNG)).text == TEXT
    (wait_s,) = waits
    assert wait_s >= 5


async def test_a_wait_that_is_too_long_is_an_error(live: Live, both: Callable[..., Both]) -> None:
    impatient = both(live.url, retry=Retry(longest_wait_s=2))
    with pytest.raises(Unavailable) as raised:
        await impatient.call("describe", PNG)
    assert (raised.value.code, raised.value.retry_after_s) == ("no_worker", 5)


async def test_a_bad_field_is_not_tried_again(
    live: Live, worker: ScriptedWorker, both: Callable[..., Both]
) -> None:
    waits: list[float] = []
    client = both(live.url, waits.append)
    with pytest.raises(Refused) as raised:
        await client.call("describe", PNG, max_tokens=0)
    assert (raised.value.status, raised.value.param) == (400, "max_tokens")
    assert raised.value.request_id
    with pytest.raises(NotFound):
        await client.call("wait", "desc-" + "0" * 32)
    assert not waits


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (ErrorData(message="Broke.", code="engine_error"), ServerFailed),
        (ErrorData(message="Late.", code="deadline_exceeded"), DeadlineExceeded),
        (ErrorData(message="Bad.", type="invalid_request_error", code="x", param="prompt"), Refused),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_an_error_event_is_raised(
    live: Live,
    worker: ScriptedWorker,
    both: Callable[..., Both],
    data: ErrorData,
    kind: type[Exception],
) -> None:
    worker.script = failing(data)
    with pytest.raises(kind, match=data.message) as raised:
        await both(live.url).call("describe", PNG)
    assert raised.value.__cause__ is None
    assert len(worker.jobs) == 1
