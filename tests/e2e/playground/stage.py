"""What a test plays on: a gateway on a port, scripted workers, and pages that are watched."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from playwright.async_api import Browser, ConsoleMessage, Page, Request

from service.embedded_redis import EmbeddedRedis
from service.settings import GatewaySettings, RedisSettings
from tests.e2e.playground.browser import DESKTOP, PATIENCE_MS
from tests.e2e.playground.scene_worker import SteppedWorker
from tests.redis_fixture import short_settings
from tests.service.gateway_fixture import on_a_port


@dataclass
class Stage:
    """A gateway, its workers (`allow` lets rounds through on all), and pages opened on it."""

    url: str
    redis: RedisSettings
    browser: Browser
    workers: list[SteppedWorker]
    cancel_seen: threading.Event
    complaints: list[str] = field(default_factory=list)

    def allow(self, rounds: int | None = None) -> None:
        for worker in self.workers:
            worker.allow() if rounds is None else worker.allow(rounds)

    @property
    def jobs(self) -> list[Any]:
        return [job for worker in self.workers for job in worker.jobs]

    def serve_as(self, model_id: str) -> None:
        for worker in self.workers:
            worker.card = worker.card.model_copy(update={"model_id": model_id})
            worker.heartbeat()

    async def cancelled(self) -> list[str]:
        """The jobs that a worker was told to drop; waits for the first."""
        await asyncio.to_thread(self.cancel_seen.wait, PATIENCE_MS / 1000)
        return [job_id for worker in self.workers for job_id in worker.cancelled]

    async def open(self, ready: bool = True, **options: Any) -> Page:
        # Without animations the browser rests between events, which a loaded machine needs.
        still = {"viewport": DESKTOP, "reduced_motion": "reduce"}
        context = await self.browser.new_context(**{**still, **options})
        page = await context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._asked)
        await page.goto(self.url)
        if ready:
            await page.locator("#send:enabled").wait_for()
            await page.locator("#preview[src]").wait_for()
        return page

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _asked(self, request: Request) -> None:
        if not request.url.startswith((self.url, f"blob:{self.url}")):
            self.complaints.append(f"outside request: {request.url}")


@contextlib.asynccontextmanager
async def staged_with(
    browser: Browser, redis_server: EmbeddedRedis, workers: int, **gateway: Any
) -> AsyncIterator[Stage]:
    redis = short_settings(redis_server.url)
    settings = GatewaySettings(redis=redis, request_timeout_s=60, max_image_bytes=500_000, **gateway)
    cancel_seen = threading.Event()
    with contextlib.ExitStack() as held:
        players = [held.enter_context(SteppedWorker(redis, cancel_seen)) for _ in range(workers)]
        async with on_a_port(settings) as live:
            staged = Stage(live.url, redis, browser, players, cancel_seen)
            try:
                yield staged
            finally:
                for context in list(browser.contexts):
                    await context.close()
