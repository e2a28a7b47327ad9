"""The playground of a service that wants an API key."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed (pip install playwright)")

from playwright.async_api import Browser, expect

from service import keys
from service.embedded_redis import EmbeddedRedis
from tests.e2e.playground.parts import answer, ask, ask_button, finished
from tests.e2e.playground.scene_worker import TEXT
from tests.e2e.playground.stage import staged_with
from tests.redis_fixture import redis_server  # noqa: F401

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="package")]


async def test_the_page_asks_for_a_key_and_uses_it(
    browser: Browser,
    redis_server: EmbeddedRedis,  # noqa: F811
    tmp_path: Path,
) -> None:
    key, file = keys.new_key(), tmp_path / "keys.json"
    entry = keys.KeyEntry(name="visitor", sha256=keys.digest(key))
    keys.write_keys(file, keys.KeyFile().with_key(entry))
    async with staged_with(browser, redis_server, workers=1, keys_file=file) as stage:
        page = await stage.open(ready=False)
        await expect(page.locator("#served-name")).to_contain_text("API key")
        await expect(ask_button(page)).to_be_disabled()
        await page.get_by_label("API key").fill(key)
        await page.get_by_label("API key").press("Tab")
        await expect(ask_button(page)).to_be_enabled()
        await page.locator("#preview[src]").wait_for()
        stage.allow()
        await ask(page)
        await finished(page)
        await expect(answer(page)).to_have_text(TEXT)
        await page.locator("#code summary").click()
        for language in ("curl", "Python", "JavaScript"):
            await page.get_by_role("group", name="Language").get_by_role("button", name=language).click()
            shown = await page.locator("#snippet").inner_text()
            assert "Bearer" in shown
            assert key not in shown
        # The browser itself logs every answer of 4xx.
        assert not [text for text in stage.complaints if "status of 401" not in text]
