"""`/docs` in a real browser: complete, usable, confined to its own origin."""

from __future__ import annotations

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed (pip install playwright)")

from playwright.async_api import expect

from tests.e2e.playground.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="package")]


async def test_the_reference_works_without_any_outside_request(stage: Stage) -> None:
    page = await stage.open()
    await page.get_by_role("link", name="API", exact=True).click()
    for path in ("/v1/describe", "/v1/jobs/{job_id}/events", "/v1/chat/completions"):
        await expect(page.locator(f'[data-path="{path}"]').first).to_be_visible()
    alive = page.locator("#operations-health-livez_livez_get")
    await alive.locator(".opblock-summary").click()
    await alive.get_by_role("button", name="Try it out").click()
    await alive.get_by_role("button", name="Execute").click()
    await expect(alive.locator(".live-responses-table")).to_contain_text("alive")
