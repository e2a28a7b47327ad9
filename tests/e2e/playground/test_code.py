"""The request on screen as code that really runs, and the history of the tab."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed (pip install playwright)")

from playwright.async_api import Page, expect

from tests.e2e.playground.parts import answer, ask, finished, panel, picture
from tests.e2e.playground.scene_worker import PATCHES, TEXT
from tests.e2e.playground.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="package")]


async def shown_code(page: Page, language: str) -> str:
    await page.get_by_role("group", name="Language").get_by_role("button", name=language).click()
    return await page.locator("#snippet").inner_text()


async def asked_code(stage: Stage) -> Page:
    stage.allow()
    page = await stage.open()
    await page.locator("#code summary").click()
    await page.locator("#question").fill('@What\'s "left" of the bee; \\ and $HOME?\nTell all.')
    return page


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
async def test_the_shown_code_asks_what_the_page_asks(stage: Stage, tmp_path: Path, language: str) -> None:
    program = {"curl": "curl", "Python": sys.executable, "JavaScript": "node"}[language]
    if shutil.which(program) is None:
        pytest.skip(f"no {program} on this machine")
    page = await asked_code(stage)
    code = await shown_code(page, language)
    await ask(page)
    await finished(page)
    (tmp_path / "bees.png").write_bytes(picture())
    (tmp_path / "request.mjs").write_text(code)
    commands = {
        "curl": ["bash", "-c", code],
        "Python": [sys.executable, "-c", code],
        "JavaScript": ["node", "request.mjs"],
    }
    done = await asyncio.to_thread(
        subprocess.run, commands[language], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    from_page, from_code = sorted(stage.jobs, key=lambda job: float(job.created_at))
    # Browsers send line breaks in multipart text as CRLF.
    assert from_code.prompt == from_page.prompt.replace("\r\n", "\n")
    assert from_code.params == from_page.params
    assert TEXT in done.stdout


async def test_code_is_copied(stage: Stage) -> None:
    page = await stage.open(permissions=["clipboard-read", "clipboard-write"])
    await page.locator("#code summary").click()
    await page.get_by_role("button", name="Copy").click()
    await expect(page.locator("#copy")).to_have_text("Copied")
    assert (
        await page.evaluate("navigator.clipboard.readText()") == await page.locator("#snippet").inner_text()
    )


async def test_the_history_brings_an_answer_back(stage: Stage) -> None:
    stage.allow()
    page = await stage.open()
    await page.get_by_label("Compare two settings").check()
    await ask(page)
    await finished(page, "Answer A")
    await finished(page, "Answer B")
    await page.get_by_label("Compare two settings").uncheck()
    await page.get_by_role("button", name="Bus", exact=True).click()
    await page.locator("#question").fill("Where is the fox?")
    await panel(page).get_by_role("button", name="Balanced").click()
    await ask(page)
    await expect(page.locator("#history li")).to_have_count(2)
    await page.locator("#history button").last.click()
    await expect(page.locator("#question")).to_have_value("Describe the image.")
    await expect(page.locator("#file-name")).to_contain_text("bees.png")
    await expect(page.get_by_label("Compare two settings")).to_be_checked()
    for title in ("Answer A", "Answer B"):
        await finished(page, title)
        await expect(answer(page, title)).to_have_text(TEXT)
    await expect(panel(page, "Answer A").locator(".slider-value")).to_have_text(f"64 of {PATCHES}")
    assert len(stage.jobs) == 3
