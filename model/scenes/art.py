"""Sprites: the open emoji art of `words.NOUNS`, rendered once from its SVG sources into one array file.

Source: the iconify JSON packages of four sets (noto, twemoji, fluent-emoji-flat, openmoji) from npm.
Needs resvg only while rendering; composing scenes reads the array.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.scenes.words import ICON_OF, NOUNS, STYLES

SPRITE_PX = 96
Sprites = NDArray[np.uint8]  # [nouns, styles, SPRITE_PX, SPRITE_PX, 4] RGBA


def _icon_svg(icon_set: dict[str, Any], name: str) -> str:
    while name not in icon_set["icons"]:
        if name not in icon_set["aliases"]:
            raise KeyError(f"icon set {icon_set['prefix']} has no icon {name!r}")
        name = icon_set["aliases"][name]["parent"]
    icon = icon_set["icons"][name]
    width = icon.get("width", icon_set.get("width", 16))
    height = icon.get("height", icon_set.get("height", 16))
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} viewBox="0 0 {width} {height}">{icon["body"]}</svg>'


def _render(svg: str) -> Image.Image:
    """The art cropped to what is drawn, centred on a transparent square."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * SPRITE_PX)
    drawn = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    drawn = drawn.crop(drawn.getbbox())
    drawn.thumbnail((SPRITE_PX, SPRITE_PX), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SPRITE_PX, SPRITE_PX))
    square.paste(drawn, ((SPRITE_PX - drawn.width) // 2, (SPRITE_PX - drawn.height) // 2))
    return square


def render_sprites(icons_dir: Path, out: Path) -> None:
    """Renders every noun in every style; `icons_dir` holds the npm packages' folders, one a set."""
    sprites = np.zeros((len(NOUNS), len(STYLES), SPRITE_PX, SPRITE_PX, 4), np.uint8)
    for s, style in enumerate(STYLES):
        icon_set = json.loads((icons_dir / style / "icons.json").read_text())
        for n, noun in enumerate(NOUNS):
            sprites[n, s] = np.asarray(_render(_icon_svg(icon_set, ICON_OF.get(noun, noun))))
    out.parent.mkdir(parents=True, exist_ok=True)
    np.save(out, sprites)


def load_sprites(path: Path) -> Sprites:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run `make data` to render the scene art")
    sprites: Sprites = np.load(path, mmap_mode="r")
    return sprites


if __name__ == "__main__":
    import sys

    render_sprites(Path(sys.argv[1]), Path(sys.argv[2]))
