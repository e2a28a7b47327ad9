"""Pictures of the playground for the README, taken from a running service (with its real model).

`python -m tests.e2e.playground.shots http://127.0.0.1:8000 docs/pictures [--scene Panda]`
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests.e2e.playground.browser import DESKTOP, FLAGS, PHONE, chromium_path

ANSWER_TIMEOUT_MS = 120_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Screenshots of the playground.")
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scene", default="Bees")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        take_all(browser, asked.url, asked.folder, asked.scene)
        browser.close()


def take_all(browser: Browser, url: str, folder: Path, scene: str) -> None:
    warm = opened(browser, url, scene, viewport=DESKTOP)
    answer(warm)  # a worker's first answer takes longer than any other
    warm.close()
    for theme in ("light", "dark"):
        page = opened(browser, url, scene, color_scheme=theme, viewport=DESKTOP)
        answer(page)
        shoot(page, folder / f"playground-{theme}.png")
        page.close()
    page = opened(browser, url, scene, color_scheme="light", viewport=DESKTOP)
    page.get_by_text("Compare two settings").click()
    answer(page)
    shoot(page, folder / "playground-compare.png")
    page.close()
    page = opened(browser, url, scene, color_scheme="light", viewport=PHONE)
    answer(page)
    shoot(page, folder / "playground-phone.png")
    page.close()


def opened(browser: Browser, url: str, scene: str, **options: object) -> Page:
    page = browser.new_page(device_scale_factor=2, reduced_motion="reduce", **options)  # type: ignore[arg-type]
    page.goto(url)
    page.get_by_role("button", name=scene, exact=True).click()
    page.locator("#send:enabled").wait_for()
    page.get_by_role("button", name="Best").first.click()
    return page


def answer(page: Page) -> None:
    page.locator("#send").click()
    page.locator("#send:enabled").wait_for(timeout=ANSWER_TIMEOUT_MS)


def shoot(page: Page, path: Path) -> None:
    page.evaluate("scrollTo(0, 0)")
    shot = Image.open(io.BytesIO(page.screenshot(full_page=True)))
    shot.convert("RGB").quantize(256, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
