"""The keep-map over the picture, and two settings side by side."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed (pip install playwright)")

from playwright.async_api import Page, expect

from tests.e2e.playground.parts import answer, ask, finished, panel
from tests.e2e.playground.scene_worker import GRID, PATCHES, kept_indices
from tests.e2e.playground.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="package")]

KEPT_OF_FAST = 41
PRUNED_SPOT, KEPT_SPOT = (12, 20), (19, 12)  # row, column


async def brightness(page: Page, row: int, column: int) -> float:
    """Of the middle of a patch on the canvas, 0 to 255."""
    return float(
        await page.evaluate(
            """([row, column, grid]) => {
              const canvas = document.querySelector("canvas");
              const p = canvas.width / grid;
              const context = new OffscreenCanvas(1, 1).getContext("2d");
              context.drawImage(canvas, -Math.floor((column + 0.5) * p), -Math.floor((row + 0.5) * p));
              const [r, g, b] = context.getImageData(0, 0, 1, 1).data;
              return (r + g + b) / 3;
            }""",
            [row, column, GRID],
        )
    )


async def test_pruned_patches_are_dimmed_and_kept_ones_are_not(stage: Stage) -> None:
    page = await stage.open()
    await ask(page)
    await expect(panel(page).locator(".map-count")).to_contain_text("comes with the end")
    before = {spot: await brightness(page, *spot) for spot in (PRUNED_SPOT, KEPT_SPOT)}
    stage.allow()
    await finished(page)
    await expect(panel(page).locator(".map-count")).to_have_text(f"{KEPT_OF_FAST} of {PATCHES} kept")
    assert await brightness(page, *PRUNED_SPOT) < 0.6 * before[PRUNED_SPOT]
    assert await brightness(page, *KEPT_SPOT) == before[KEPT_SPOT]
    await panel(page).get_by_role("button", name="Picture").click()
    assert await brightness(page, *PRUNED_SPOT) == before[PRUNED_SPOT]
    await panel(page).get_by_role("button", name="Scores").click()
    assert await brightness(page, *PRUNED_SPOT) != before[PRUNED_SPOT]


async def test_pointing_at_a_patch_or_walking_to_it_tells_its_score(stage: Stage) -> None:
    stage.allow()
    page = await stage.open()
    await ask(page)
    await finished(page)
    canvas = page.locator("canvas").first
    box = await canvas.bounding_box()
    assert box is not None
    row, column = KEPT_SPOT
    patch = box["width"] / GRID
    await canvas.hover(position={"x": (column + 0.5) * patch, "y": (row + 0.5) * patch})
    told = panel(page).locator(".map-cell")
    await expect(told).to_have_text(re.compile(r"Row 20, column 13: kept, score 0\.0\d+, rank \d+"))
    await page.mouse.move(0, 0)
    await expect(told).to_contain_text("Point at a patch")
    await canvas.focus()
    await expect(told).to_contain_text("Row 20, column 13")
    await page.keyboard.press("ArrowLeft")
    await expect(told).to_contain_text("Row 20, column 12")
    for key in ("ArrowDown",) * 9:
        await page.keyboard.press(key)
    await expect(told).to_contain_text(f"Row {GRID}, column 12: pruned")
    await expect(page.locator(".cell").first).to_be_visible()


# --- comparing ---


async def test_two_settings_stream_side_by_side(stage: Stage) -> None:
    page = await stage.open()
    await page.get_by_label("Compare two settings").check()
    await ask(page)
    stage.allow(2)
    await expect(answer(page, "Answer A")).to_have_text("The picture shows four objects on")
    await expect(answer(page, "Answer B")).to_have_text("The picture")
    boxes = [await panel(page, title).bounding_box() for title in ("Answer A", "Answer B")]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert (boxes[0]["y"], boxes[0]["x"] + boxes[0]["width"]) < (boxes[1]["y"] + 1, boxes[1]["x"])
    stage.allow()
    await finished(page, "Answer A")
    await finished(page, "Answer B")
    await expect(page.locator("#verdict")).to_contain_text("the same, word for word. A was done after")
    settings = {(job.params.retained_tokens, job.params.speculation) for job in stage.jobs}
    assert settings == {(64, True), (PATCHES, False)}
    await expect(panel(page, "Answer B").locator(".map-count")).to_have_text(f"{PATCHES} of {PATCHES} kept")
    await expect(panel(page, "Answer B").get_by_role("button", name="Scores")).to_be_disabled()


async def test_the_scripted_scene_keeps_as_many_as_the_paper() -> None:
    """R-bar 64 of 576 with this shape gives R' = 41, see the design's section 1."""
    assert len(kept_indices(64)) == KEPT_OF_FAST
