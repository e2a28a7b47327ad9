"""Fixtures: a gateway on a real Redis with a scripted worker, in process (`client`) or on a port (`live`).

httpx's ASGI transport delivers a response only when it is whole, so streams and disconnects need `live`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.gateway import Accepted, Gateway
from service.http_server import server_config
from service.settings import GatewaySettings, RedisSettings
from tests.redis_fixture import redis_server, redis_settings  # noqa: F401
from tests.service.scripted_worker import ScriptedWorker


@dataclass
class Live:
    url: str
    app: FastAPI
    server: uvicorn.Server

    @property
    def gateway(self) -> Gateway:
        gateway = self.app.state.gateway
        assert isinstance(gateway, Gateway)
        return gateway


def counted(live: Live) -> dict[tuple[str, ...], float]:
    """The requests that ended well, by finish reason, and the others, by `err` and status."""
    samples = [sample for family in live.gateway.metrics.registry.collect() for sample in family.samples]
    ends = ("twigvlm_request_success_total", "twigvlm_request_failure_total")
    return {tuple(sample.labels.values()): sample.value for sample in samples if sample.name in ends}


async def eventually(true: Callable[[], bool]) -> None:
    """For what another thread or library does and nothing announces."""
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
def headless(live: Live, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Until the test ends the first client hears nothing of its job, which is in the queue; others do."""
    submit, told, calls = live.gateway.submit, asyncio.Event(), itertools.count()

    async def silent_at_first(*args: Any, **options: Any) -> Accepted:
        accepted = await submit(*args, **options)
        if next(calls) == 0:
            await told.wait()
        return accepted

    monkeypatch.setattr(live.gateway, "submit", silent_at_first)
    yield
    told.set()


@pytest.fixture
def settings(redis_settings: RedisSettings) -> GatewaySettings:  # noqa: F811
    return GatewaySettings(
        redis=redis_settings,
        max_image_bytes=200_000,
        max_pixels=1_000_000,
        max_prompt_chars=1000,
        max_tokens_limit=256,
        max_open_requests=8,
        look_age_s=0,
        batch_look_s=0.05,
        batch_max_lines=20,
        batch_max_bytes=100_000,
        request_timeout_s=60,
        sse_heartbeat_s=0.1,
    )


@pytest.fixture
def worker(redis_settings: RedisSettings) -> Iterator[ScriptedWorker]:  # noqa: F811
    with ScriptedWorker(redis_settings) as running:
        yield running


@contextlib.asynccontextmanager
async def in_process(settings: GatewaySettings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://gw") as client,
    ):
        yield client


@contextlib.asynccontextmanager
async def on_a_port(settings: GatewaySettings, **patience: float) -> AsyncIterator[Live]:
    app = create_app(settings)
    server = uvicorn.Server(server_config(app, settings.model_copy(update={"port": 0}), **patience))
    serving = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Live(f"http://127.0.0.1:{port}", app, server)
    finally:
        server.should_exit = True
        await serving


@pytest.fixture
async def client(settings: GatewaySettings) -> AsyncIterator[httpx.AsyncClient]:
    async with in_process(settings) as running:
        yield running


@pytest.fixture
async def live(settings: GatewaySettings) -> AsyncIterator[Live]:
    async with on_a_port(settings) as running:
        yield running
