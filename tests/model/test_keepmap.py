"""The keep-map: kept patches as they were, pruned ones dimmed, the part of the picture that the tower saw."""

from __future__ import annotations

import pytest
from PIL import Image, ImageChops
from PIL.Image import Resampling

from model.card import ImageSpec
from model.keepmap import as_seen, keep_map

RED, BLUE = (250, 0, 0), (0, 0, 250)
STRETCH = ImageSpec(24, 24, "stretch")


def halves(width: int, height: int) -> Image.Image:
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", (width, height), BLUE)
    picture.paste(RED, (0, 0, width // 2, height))
    return picture


def patch(picture: Image.Image, index: int, columns: int, px: int) -> Image.Image:
    row, column = divmod(index, columns)
    return picture.crop((column * px, row * px, (column + 1) * px, (row + 1) * px))


def test_kept_patches_are_untouched_and_pruned_ones_darker() -> None:
    picture = Image.effect_noise((60, 40), 80).convert("RGB")
    drawn = keep_map(picture, STRETCH, (2, 3), [0, 4], patch_px=20)
    seen = picture.resize((60, 40), Resampling.BICUBIC)
    assert drawn.size == (60, 40)
    for index in range(6):
        mine, theirs = patch(drawn, index, 3, 20), patch(seen, index, 3, 20)
        same = ImageChops.difference(mine, theirs).getbbox() is None
        assert same == (index in (0, 4))
        if not same:
            assert sum(mine.convert("L").tobytes()) < 0.6 * sum(theirs.convert("L").tobytes())


@pytest.mark.parametrize(
    ("fit", "left", "top"),
    [("stretch", RED, RED), ("crop", RED, RED), ("pad", RED, (122, 116, 104))],
)
def test_it_shows_what_the_tower_saw(fit: str, left: tuple[int, ...], top: tuple[int, ...]) -> None:
    seen = as_seen(halves(80, 40), ImageSpec(24, 24, fit), (40, 40))  # type: ignore[arg-type]
    assert seen.getpixel((2, 20)) == left
    assert seen.getpixel((2, 2)) == top


def test_a_crop_shows_the_middle_alone() -> None:
    picture = Image.new("RGB", (90, 30), BLUE)
    picture.paste(RED, (30, 0, 60, 30))
    seen = as_seen(picture, ImageSpec(24, 24, "crop"), (48, 48))
    assert {seen.getpixel((x, 24)) for x in range(2, 46)} == {RED}


@pytest.mark.parametrize("kept", [[6], [-1]])
def test_indices_outside_the_grid_are_refused(kept: list[int]) -> None:
    with pytest.raises(ValueError, match="0 to 5"):
        keep_map(halves(6, 4), STRETCH, (2, 3), kept)


def test_everything_and_nothing() -> None:
    picture = halves(40, 40)
    whole = keep_map(picture, STRETCH, (4, 4), range(16), patch_px=10)
    assert ImageChops.difference(whole, picture).getbbox() is None
    none = keep_map(picture, STRETCH, (4, 4), [], patch_px=10)
    assert max(none.convert("L").tobytes()) < 128
