"""The parts of the page that the tests look at and touch."""

from __future__ import annotations

import io

from PIL import Image
from playwright.async_api import Locator, Page, expect


def panel(page: Page, title: str = "Answer") -> Locator:
    return page.locator(f'section.panel[aria-label="{title}"]')


def answer(page: Page, title: str = "Answer") -> Locator:
    return panel(page, title).locator(".answer")


def ask_button(page: Page) -> Locator:
    return page.get_by_role("button", name="Ask", exact=True)


async def ask(page: Page) -> None:
    await ask_button(page).click()


async def finished(page: Page, title: str = "Answer") -> None:
    await expect(panel(page, title).locator(".status")).to_have_text("Finished.")


def picture(width: int = 40, height: int = 30) -> bytes:
    """One even blue, so that the pixels a worker gets tell it."""
    data = io.BytesIO()
    Image.new("RGB", (width, height), (40, 90, 160)).save(data, "PNG")
    return data.getvalue()
