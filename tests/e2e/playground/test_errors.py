"""What the playground shows where a request, or the service, fails."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed (pip install playwright)")

from playwright.async_api import expect

from service.protocol import ErrorData, Job, TokenData
from tests.e2e.playground.parts import answer, ask, ask_button
from tests.e2e.playground.scene_worker import TEXT, SteppedWorker, split_rounds
from tests.e2e.playground.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="package")]


async def test_an_error_is_shown_as_the_api_tells_it(stage: Stage) -> None:
    page = await stage.open()
    text_file = {"name": "holiday.jpg", "mimeType": "image/jpeg", "buffer": b"not a picture at all"}
    await page.locator("#file").set_input_files(text_file)
    await expect(page.locator("#file-name")).to_contain_text("cannot be shown here")
    async with page.expect_response("**/v1/describe") as refused:
        await ask(page)
    response = await refused.value
    error: dict[str, Any] = (await response.json())["error"]
    assert response.status == 415
    shown = page.get_by_role("alert")
    await expect(shown).to_contain_text(error["message"])
    await expect(shown).to_contain_text(error["code"])
    await expect(shown).to_contain_text(response.headers["x-request-id"])
    await expect(shown).to_contain_text("415")
    # The browser itself logs every answer of 4xx.
    stage.complaints[:] = [text for text in stage.complaints if "status of 415" not in text]


async def test_the_field_at_fault_is_named(stage: Stage) -> None:
    page = await stage.open()
    await page.locator("#max-tokens").evaluate("e => { e.removeAttribute('min'); e.value = '0'; }")
    await ask(page)
    await expect(page.locator(".error-details").first).to_contain_text("max_tokens")
    stage.complaints[:] = [text for text in stage.complaints if "status of 400" not in text]


async def test_an_error_in_mid_stream_keeps_what_was_said(stage: Stage) -> None:
    def breaks(job: Job) -> tuple[list[TokenData], ErrorData]:
        return split_rounds(TEXT.split(" ")[:1], True), ErrorData(
            message="The engine broke.", code="engine_error"
        )

    for worker in stage.workers:
        worker.script = breaks
    stage.allow()
    page = await stage.open()
    await ask(page)
    await expect(page.get_by_role("alert")).to_contain_text("The engine broke.")
    await expect(page.get_by_role("alert")).to_contain_text("engine_error")
    await expect(answer(page)).to_have_text("The")


async def test_without_a_worker_the_page_waits_for_one(empty_stage: Stage) -> None:
    page = await empty_stage.open(ready=False)
    await expect(page.locator("#served-name")).to_contain_text("No worker is ready")
    await expect(ask_button(page)).to_be_disabled()
    with SteppedWorker(empty_stage.redis):
        await expect(ask_button(page)).to_be_enabled()
        await expect(page.locator("#served-name")).to_contain_text("scripted-scenes")
