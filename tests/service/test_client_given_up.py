"""Work that nobody waits for any more is stopped, whenever and however its client gave it up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from service.client import AsyncClient, Retry, Unreachable
from service.settings import GatewaySettings
from tests.e2e.playground.scene_worker import TEXT as SCENE_TEXT
from tests.e2e.playground.scene_worker import SteppedWorker
from tests.service.both_clients import Both
from tests.service.cutting_proxy import cutting_proxy
from tests.service.gateway_fixture import Live, eventually
from tests.service.scripted_worker import ScriptedWorker
from tests.service.test_describe import PNG


async def cancelled(asking: asyncio.Task[Any]) -> None:
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def is_stopped(worker: ScriptedWorker) -> None:
    await eventually(lambda: worker.cancelled == [worker.jobs[0].id])


async def stops_when_cancelled(live: Live, worker: ScriptedWorker, call: str) -> None:
    worker.hold()
    async with AsyncClient(live.url) as client:
        asking = asyncio.create_task(getattr(client, call)(PNG))
        await eventually(lambda: bool(worker.jobs))
        await cancelled(asking)
        await is_stopped(worker)


async def test_who_drops_a_stream_stops_the_work(
    live: Live, both: Callable[..., Both], settings: GatewaySettings
) -> None:
    with SteppedWorker(settings.redis) as worker:
        worker.allow(1)
        await both(live.url).first_of(PNG)
        await is_stopped(worker)


async def test_a_stream_under_ones_own_key_can_be_dropped_and_taken_up(
    live: Live, both: Callable[..., Both], settings: GatewaySettings
) -> None:
    with SteppedWorker(settings.redis) as worker:
        worker.allow(1)
        client = both(live.url)
        await client.first_of(PNG, idempotency_key="mine")
        worker.allow()
        assert (await client.call("describe", PNG, idempotency_key="mine")).text == SCENE_TEXT
        assert len(worker.jobs) == 1


async def test_a_cancelled_task_stops_the_work(live: Live, worker: ScriptedWorker) -> None:
    await stops_when_cancelled(live, worker, "describe")


@pytest.mark.usefixtures("headless")
@pytest.mark.parametrize("call", ["describe", "submit"])
async def test_a_task_cancelled_before_it_knows_its_job_stops_the_work(
    live: Live, worker: ScriptedWorker, call: str
) -> None:
    """Of a job that was only asked for nobody would ever know the name."""
    await stops_when_cancelled(live, worker, call)
    assert len(worker.jobs) == 1


async def test_who_closes_the_client_stops_the_work_of_its_streams(
    live: Live, both: Callable[..., Both], settings: GatewaySettings
) -> None:
    """An `async for` left by a break closes its generator later than `async with` closes the client."""
    with SteppedWorker(settings.redis) as worker:
        worker.allow(1)
        client = both(live.url)
        await client.left_open(PNG)
        await client.close()
        await is_stopped(worker)


@pytest.mark.usefixtures("headless")
async def test_the_stop_of_a_job_is_tried_again_where_the_gateway_is_full(
    live: Live, worker: ScriptedWorker, settings: GatewaySettings
) -> None:
    """It asks for the job by its key, as the request that is given up did, and was refused like any other."""
    worker.hold()
    with contextlib.ExitStack() as others:

        async def asleep(_wait_s: float) -> None:
            others.close()

        async with AsyncClient(live.url, sleep=asleep) as client:
            asking = asyncio.create_task(client.describe(PNG))
            await eventually(lambda: bool(worker.jobs))
            for _ in range(settings.max_open_requests - 1):
                others.enter_context(live.gateway.admission)
            await cancelled(asking)
    await is_stopped(worker)


@pytest.mark.usefixtures("headless")
@pytest.mark.parametrize("call", ["describe", "submit"])
async def test_who_gives_up_on_a_broken_connection_stops_the_work(
    live: Live, worker: ScriptedWorker, both: Callable[..., Both], call: str
) -> None:
    worker.hold()
    async with cutting_proxy(live.url) as proxy:
        client = both(proxy.url, retry=Retry(attempts=0))
        asking = asyncio.create_task(client.call(call, PNG))
        await eventually(lambda: bool(worker.jobs))
        proxy.cut()
        with pytest.raises(Unreachable):
            await asking
        await is_stopped(worker)
    assert len(worker.jobs) == 1


@pytest.mark.usefixtures("headless")
async def test_a_task_cancelled_while_it_waits_to_try_again_stops_the_work(
    live: Live, worker: ScriptedWorker
) -> None:
    """The POST broke off before its head, so its job is not known."""
    worker.hold()
    waiting = asyncio.Event()

    async def asleep(_wait_s: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    async with cutting_proxy(live.url) as proxy, AsyncClient(proxy.url, sleep=asleep) as client:
        asking = asyncio.create_task(client.describe(PNG))
        await eventually(lambda: bool(worker.jobs))
        proxy.cut()
        await waiting.wait()
        await cancelled(asking)
        await is_stopped(worker)
