"""Light and dark, phone width, less motion, keyboard, and what axe-core finds."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
from typing import Any

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed (pip install playwright)")

from playwright.async_api import Page, expect

from tests.e2e.playground.browser import PHONE
from tests.e2e.playground.parts import answer, ask, finished
from tests.e2e.playground.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="package")]


def luminance(color: str) -> float:
    return sum(int(part) for part in re.findall(r"\d+", color)[:3]) / 3


async def ground(page: Page) -> float:
    return luminance(await page.evaluate("getComputedStyle(document.body).backgroundColor"))


async def test_dark_follows_the_system_and_the_button(stage: Stage) -> None:
    page = await stage.open(color_scheme="dark")
    toggle = page.get_by_role("button", name="Dark")
    assert await ground(page) < 60
    await expect(toggle).to_have_attribute("aria-pressed", "true")
    await toggle.click()
    assert await ground(page) > 200
    await page.reload()
    await expect(toggle).to_have_attribute("aria-pressed", "false")
    assert await ground(page) > 200


async def test_nothing_is_wider_than_a_phone(stage: Stage) -> None:
    stage.allow()
    page = await stage.open(viewport=PHONE, has_touch=True, is_mobile=True)
    await page.get_by_label("Compare two settings").check()
    await page.locator("#code summary").click()
    await ask(page)
    await finished(page, "Answer A")
    assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert await page.evaluate("scrollY") > 0, "the answer is brought into view"
    crossed = await page.evaluate(
        """width => [...document.querySelectorAll("button, input, textarea, dd, p, h2")]
          .filter((e) => e.getBoundingClientRect().right > width + 0.5)
          .map((e) => e.outerHTML.slice(0, 80))""",
        PHONE["width"],
    )
    assert not crossed


async def test_nothing_moves_where_less_motion_is_asked(stage: Stage) -> None:
    page = await stage.open(reduced_motion="reduce")
    await ask(page)
    stage.allow(1)
    await expect(answer(page)).to_have_text("The")
    name = "e => getComputedStyle(e).animationName"
    assert await answer(page).locator(".token").first.evaluate(name) == "none"


async def test_everything_is_reached_by_keyboard(stage: Stage) -> None:
    stage.allow()
    page = await stage.open()
    reached: list[str] = []
    for _ in range(40):
        await page.keyboard.press("Tab")
        reached.append(
            await page.evaluate(
                "document.activeElement.id || document.activeElement.textContent.trim().slice(0, 20)"
            )
        )
    for name in (
        "Skip to the question",
        "theme",
        "file",
        "question",
        "max-tokens",
        "send",
        "compare",
        "Answer-kept",
    ):
        assert name in reached, name


@pytest.fixture(scope="session")
def axe_source(pytestconfig: pytest.Config) -> str:
    """axe-core from npm, kept in pytest's cache; not committed, as it is larger than the page it checks."""
    folder = pytestconfig.cache.mkdir("axe-core") if pytestconfig.cache else None
    if folder is None or shutil.which("npm") is None:
        pytest.skip("no npm to fetch axe-core with")
    archives = sorted(folder.glob("axe-core-*.tgz"))
    if not archives:
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), "axe-core@4"]
        fetched = subprocess.run(command, capture_output=True, text=True, timeout=100)
        if fetched.returncode != 0:
            pytest.skip(f"npm could not fetch axe-core: {fetched.stderr.strip()[-200:]}")
        archives = sorted(folder.glob("axe-core-*.tgz"))
    with tarfile.open(archives[-1]) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": PHONE, "color_scheme": "light"},
}


@pytest.mark.parametrize("look", LOOKS)
async def test_axe_finds_nothing_serious(stage: Stage, axe_source: str, look: str) -> None:
    stage.allow()
    page = await stage.open(bypass_csp=True, **LOOKS[look])
    await page.locator("#code summary").click()
    await ask(page)
    await finished(page)
    await page.get_by_label("Compare two settings").check()
    await page.locator("#max-tokens").evaluate("e => { e.removeAttribute('min'); e.value = '0'; }")
    await ask(page)
    await expect(page.get_by_role("alert")).to_have_count(2)
    await page.evaluate(axe_source)
    found = await page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    told = [(v["id"], v["impact"], [n["target"] for n in v["nodes"]]) for v in found["violations"]]
    assert not [one for one in told if one[1] in ("serious", "critical")]
    assert not told, "minor findings are worth a look too"
    stage.complaints[:] = [text for text in stage.complaints if "status of 400" not in text]
