"""Fixtures of the playground's tests. Playwright lives on one event loop: all of this is on the package's.

Playwright is imported late, so that the tests can be skipped with their reason where it is not installed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from service.embedded_redis import EmbeddedRedis
from tests.e2e.playground.browser import FLAGS, PATIENCE_MS, chromium_path
from tests.redis_fixture import redis_server  # noqa: F401

if TYPE_CHECKING:
    from playwright.async_api import Browser

    from tests.e2e.playground.stage import Stage


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def browser() -> AsyncIterator[Browser]:
    path = chromium_path()
    if path is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    from playwright.async_api import async_playwright, expect

    expect.set_options(timeout=PATIENCE_MS)
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        await running.close()


@pytest_asyncio.fixture(loop_scope="package")
async def stage(browser: Browser, redis_server: EmbeddedRedis) -> AsyncIterator[Stage]:  # noqa: F811
    """Fails the test at its end if the page complained, or asked anybody but its own origin."""
    from tests.e2e.playground.stage import staged_with

    async with staged_with(browser, redis_server, workers=2) as staged:
        yield staged
    assert not staged.complaints


@pytest_asyncio.fixture(loop_scope="package")
async def empty_stage(browser: Browser, redis_server: EmbeddedRedis) -> AsyncIterator[Stage]:  # noqa: F811
    """As `stage`, with no worker yet."""
    from tests.e2e.playground.stage import staged_with

    async with staged_with(browser, redis_server, workers=0) as staged:
        yield staged
    assert not staged.complaints
