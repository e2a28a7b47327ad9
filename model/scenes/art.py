"""Sprites: the open emoji art of `words.NOUNS`, rendered once from its SVG sources into array files.

Source: the iconify JSON packages of five sets from npm: the four that training draws with, and one that only
evaluations do. Needs resvg only while rendering; composing scenes reads the arrays.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.scenes.words import ICON_OF, NOUNS, STYLES, UNSEEN_STYLE

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


def _render_set(icons_dir: Path, style: str, partial: bool) -> Sprites:
    """[nouns, 1, ...]; in a `partial` set what is missing stays transparent."""
    sprites = np.zeros((len(NOUNS), 1, SPRITE_PX, SPRITE_PX, 4), np.uint8)
    icon_set = json.loads((icons_dir / style / "icons.json").read_text())
    for number, noun in enumerate(NOUNS):
        name = ICON_OF.get(noun, noun)
        if partial and name not in icon_set["icons"] and name not in icon_set["aliases"]:
            continue
        sprites[number, 0] = np.asarray(_render(_icon_svg(icon_set, name)))
    return sprites


def unseen_path(sprites: Path) -> Path:
    """Where the art that no training run sees lies, beside the other."""
    return sprites.with_stem(sprites.stem + "-unseen")


def render_sprites(icons_dir: Path, out: Path) -> None:
    """Renders every noun in every style; `icons_dir` holds the npm packages' folders, one a set."""
    out.parent.mkdir(parents=True, exist_ok=True)
    np.save(out, np.concatenate([_render_set(icons_dir, style, partial=False) for style in STYLES], 1))
    np.save(unseen_path(out), _render_set(icons_dir, UNSEEN_STYLE, partial=True))


def load_sprites(path: Path) -> Sprites:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run `make data` to render the scene art")
    sprites: Sprites = np.load(path, mmap_mode="r")
    return sprites


def load_unseen(path: Path) -> tuple[Sprites, list[str]]:
    """The unseen style in the shape of `load_sprites` (every style is this one), and the nouns it has."""
    art = load_sprites(unseen_path(path))
    nouns = [noun for number, noun in enumerate(NOUNS) if art[number, 0, ..., 3].any()]
    return np.broadcast_to(art, (len(NOUNS), len(STYLES), *art.shape[2:])), nouns


if __name__ == "__main__":
    import sys

    from model.scenes.colors import write_table

    render_sprites(Path(sys.argv[1]), Path(sys.argv[2]))
    write_table(load_sprites(Path(sys.argv[2])))
