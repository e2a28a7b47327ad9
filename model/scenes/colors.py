"""The dominant colour of each piece of art, where it has one, by the names that the backgrounds have too.

Read from `colors.json`, which `python -m model.scenes.art` writes beside this file when it renders the art:
what is said of a scene must not need its pixels.
"""

from __future__ import annotations

import colorsys
import json
from functools import cache
from pathlib import Path

import numpy as np

from model.scenes.art import Sprites
from model.scenes.compose import Object
from model.scenes.words import NOUNS

TABLE = Path(__file__).with_name("colors.json")
DOMINANT = 0.55  # the least share of what is drawn
# Hues in degrees up to which a colour has its name; the last comes round to the first.
_HUES = (
    (16, "red"), (41, "orange"), (68, "yellow"), (165, "green"), (255, "blue"), (300, "purple"),
    (343, "pink"),
)  # fmt: skip


def color_of(thing: Object) -> str | None:
    return _table()[thing.noun][thing.style]


@cache
def _table() -> dict[str, list[str | None]]:
    table: dict[str, list[str | None]] = json.loads(TABLE.read_text())
    return table


def write_table(sprites: Sprites, out: Path = TABLE) -> None:
    table = {noun: [dominant(art) for art in sprites[number]] for number, noun in enumerate(NOUNS)}
    rows = [f"{json.dumps(noun)}: {json.dumps(colors)}" for noun, colors in table.items()]
    out.write_text("{" + ",\n".join(rows) + "}\n")


def dominant(sprite: Sprites) -> str | None:
    """sprite: RGBA [side, side, 4]. The name that most of what is drawn has."""
    drawn = sprite[sprite[..., 3] > 127][::7, :3]
    if not len(drawn):
        return None
    names, counts = np.unique([color_name(*pixel) for pixel in drawn / 255.0], return_counts=True)
    return str(names[counts.argmax()]) if counts.max() >= DOMINANT * counts.sum() else None


def color_name(red: float, green: float, blue: float) -> str:
    """Each 0..1."""
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    if value < 0.25:
        return "black"
    if saturation < 0.15:
        return "white" if value > 0.85 else "gray"
    degrees = 360 * hue
    name = next((name for end, name in _HUES if degrees < end), "red")
    if (
        name in ("red", "orange")
        and value < 0.8
        and saturation > 0.25
        and not (name == "red" and saturation > 0.7)
    ):
        return "brown"
    return "pink" if name == "red" and saturation < 0.5 else name
