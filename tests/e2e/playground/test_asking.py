"""Asking in the playground: the stream, the settings, pictures of one's own, cancelling."""

from __future__ import annotations

import asyncio
import re

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed (pip install playwright)")

from playwright.async_api import Route, expect

from tests.e2e.playground.parts import answer, ask, ask_button, finished, panel, picture
from tests.e2e.playground.scene_worker import PATCHES, TEXT
from tests.e2e.playground.stage import Stage
from tests.service.cutting_proxy import cutting_proxy

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="package")]

KEPT_OF_FAST = 41


async def test_a_bundled_scene_streams_round_by_round(stage: Stage) -> None:
    page = await stage.open()
    await ask(page)
    await expect(panel(page).locator(".status")).to_have_text("Waiting for the first token…")
    stage.allow(1)
    await expect(answer(page)).to_have_text("The")
    await expect(answer(page)).to_have_attribute("aria-busy", "true")
    stage.allow(1)
    await expect(answer(page)).to_have_text("The picture shows four objects on")
    await expect(panel(page).locator(".acceptance-note")).to_have_text("of the text drafted so far")
    await expect(panel(page).locator(".speed")).to_have_text(re.compile(r"^\d+(\.\d)?$"))
    stage.allow()
    await finished(page)
    await expect(answer(page)).to_have_text(TEXT)
    await expect(answer(page)).to_have_attribute("aria-busy", "false")


async def test_the_end_shows_the_services_own_figures_and_whose_token_is_which(stage: Stage) -> None:
    stage.allow()
    page = await stage.open()
    await ask(page)
    await finished(page)
    shown = panel(page)
    await expect(shown.locator(".kept")).to_have_text(f"{KEPT_OF_FAST} of {PATCHES}")
    await expect(shown.locator(".kept-note")).to_contain_text("64 on average")
    await expect(shown.locator(".acceptance")).to_have_text("85 %")
    await expect(shown.locator(".first-note")).to_have_text("1 ms in the queue, 18 vision, 25 prompt")
    own, drafted = answer(page).locator(".own").first, answer(page).locator(".drafted").first
    await expect(own).to_have_text("The")
    # Told apart by more than colour.
    assert "inset" in await drafted.evaluate("e => getComputedStyle(e).boxShadow")
    assert await own.evaluate("e => getComputedStyle(e).boxShadow") == "none"
    await expect(shown.locator(".legend")).to_contain_text("accepted by the full network")


async def test_what_is_set_is_what_is_asked(stage: Stage) -> None:
    stage.allow()
    page = await stage.open()
    await page.locator("#question").fill("Where is the kite?")
    await page.get_by_label("Longest answer").fill("17")
    await panel(page).get_by_role("button", name="Best").click()
    await panel(page).get_by_text("Speculation").click()
    await page.locator("#question").press("Enter")
    await expect(panel(page).locator(".status")).to_have_text("Stopped at the longest answer allowed.")
    (job,) = stage.jobs
    assert job.prompt == "Where is the kite?"
    assert (job.params.max_tokens, job.params.retained_tokens, job.params.speculation) == (17, 192, False)
    await expect(answer(page).locator(".drafted")).to_have_count(0)
    await expect(panel(page).locator(".acceptance-note")).to_have_text("nothing was drafted")


async def test_the_slider_stays_within_the_cards_range(stage: Stage) -> None:
    stage.allow()
    page = await stage.open()
    slider = panel(page).get_by_role("slider")
    await slider.focus()
    await page.keyboard.press("Home")
    await expect(slider).to_have_attribute("aria-valuetext", f"36 of {PATCHES}")
    await page.keyboard.press("ArrowRight")
    await ask(page)
    await finished(page)
    await slider.focus()
    await page.keyboard.press("End")
    await expect(slider).to_have_attribute("aria-valuetext", f"all {PATCHES}, exact")
    await page.keyboard.press("ArrowLeft")
    await expect(slider).to_have_attribute("aria-valuetext", f"432 of {PATCHES}")
    assert [job.params.retained_tokens for job in stage.jobs] == [37]


# --- pictures of one's own ---


async def test_a_picked_file_is_sent(stage: Stage) -> None:
    stage.allow()
    page = await stage.open()
    await page.locator("#file").set_input_files(
        {"name": "blue.png", "mimeType": "image/png", "buffer": picture()}
    )
    await expect(page.locator("#file-name")).to_have_text("blue.png · 40 × 30")
    await ask(page)
    await finished(page)
    raw = next(blob for worker in stage.workers for blob in worker.blobs)
    assert raw is not None
    assert raw[:3] == bytes((40, 90, 160))


async def test_who_brings_a_photograph_is_told_what_the_small_model_knows(stage: Stage) -> None:
    """Of the embedded model alone: nothing is known of the limits of others."""
    for served, told in (("scripted-scenes", False), ("twigvlm-embedded", True)):
        stage.serve_as(served)
        page = await stage.open()
        notice = page.locator("#notice")
        await expect(notice).to_be_hidden()
        await page.locator("#file").set_input_files(
            {"name": "bees.png", "mimeType": "image/png", "buffer": picture()}
        )
        await expect(page.locator("#file-name")).to_have_text("bees.png · 40 × 30")
        await expect(notice).to_be_visible(visible=told)
        await page.get_by_role("button", name="Bus", exact=True).click()
        await expect(page.locator("#file-name")).to_contain_text("bus.png")
        await expect(notice).to_be_hidden()


async def test_before_the_first_question_the_patches_are_shown(stage: Stage) -> None:
    page = await stage.open()
    await expect(panel(page).locator(".map-count")).to_have_text("24 × 24 patches, before any is pruned.")
    await expect(panel(page).get_by_role("group", name="What the map shows")).to_be_hidden()


async def test_a_dropped_or_pasted_picture_is_taken(stage: Stage) -> None:
    page = await stage.open()
    for way in ("drop", "paste"):
        await page.evaluate(DROP_OR_PASTE, [way, list(picture())])
        await expect(page.locator("#file-name")).to_have_text(f"{way}.png · 40 × 30")
    await expect(page.locator("#preview")).to_be_visible()


DROP_OR_PASTE = """([way, bytes]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], `${way}.png`, { type: "image/png" }));
          const init = { bubbles: true, cancelable: true };
          document.getElementById("drop").dispatchEvent(way === "drop"
            ? new DragEvent("drop", { ...init, dataTransfer: transfer })
            : new ClipboardEvent("paste", { ...init, clipboardData: transfer }));
        }"""


# --- a broken connection ---


async def test_a_broken_stream_goes_on_behind_its_last_event(stage: Stage) -> None:
    async with cutting_proxy(stage.url) as proxy:
        stage.url = proxy.url
        page = await stage.open()
        await ask(page)
        stage.allow(2)
        await expect(answer(page)).to_have_text("The picture shows four objects on")
        async with page.expect_request("**/v1/jobs/*/events") as resumed:
            proxy.cut()
        request = await resumed.value
        assert re.fullmatch(r"1-\d+", await request.header_value("last-event-id") or "")
        stage.allow()
        await finished(page)
        await expect(answer(page)).to_have_text(TEXT)
        assert len(stage.jobs) == 1
    stage.complaints[:] = [text for text in stage.complaints if "net::ERR_" not in text]


async def test_a_connection_that_stays_lost_is_an_error(stage: Stage) -> None:
    async with cutting_proxy(stage.url) as proxy:
        stage.url = proxy.url
        page = await stage.open()
        await ask(page)
        stage.allow(1)
        await expect(answer(page)).to_have_text("The")
        await page.route("**/v1/jobs/*/events", lambda route: route.abort())
        proxy.cut()
        await expect(page.get_by_role("alert")).to_contain_text("stream_broken")
    await expect(answer(page)).to_have_text("The")
    stage.complaints[:] = [text for text in stage.complaints if "net::ERR_" not in text]


# --- cancelling ---


async def test_cancel_stops_the_work_on_the_server(stage: Stage) -> None:
    page = await stage.open()
    await ask(page)
    stage.allow(1)
    await expect(answer(page)).to_have_text("The")
    await page.get_by_role("button", name="Cancel", exact=True).click()
    await expect(panel(page).locator(".status")).to_contain_text("Cancelled")
    assert await stage.cancelled() == [job.id for job in stage.jobs]
    await expect(ask_button(page)).to_be_enabled()
    await expect(page.get_by_role("button", name="Cancel", exact=True)).to_be_hidden()


async def test_who_leaves_the_page_stops_the_work_too(stage: Stage) -> None:
    page = await stage.open()
    await ask(page)
    stage.allow(1)
    await expect(answer(page)).to_have_text("The")
    await page.goto("about:blank")
    assert await stage.cancelled() == [job.id for job in stage.jobs]


async def test_a_cancel_before_the_answers_head_reaches_the_job(stage: Stage) -> None:
    """The job has no name on the page yet; the cancel catches up with it."""
    page = await stage.open()
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def late(route: Route) -> None:
        asked.set()
        await go_on.wait()
        await route.continue_()

    await page.route("**/v1/describe", late)
    await ask(page)
    await asked.wait()
    await page.get_by_role("button", name="Cancel", exact=True).click()
    await expect(panel(page).locator(".status")).to_contain_text("Cancelled")
    go_on.set()
    assert await stage.cancelled() == [job.id for job in stage.jobs]
