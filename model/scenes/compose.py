"""A scene: what stands where on which background, from a seed; and its pixels with per-patch labels.

Invariant: one object a cell of the 3x3 grid, wholly inside its cell, so a patch's place is its cell.
The same seed gives the same scene everywhere. Seeds below TRAIN_SEEDS are never trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.scenes.art import Sprites
from model.scenes.words import COLOR_NAMES, COLORS, NOUNS, PATTERNS, PLACES, SIZES, STYLES

IMAGE_PX, PATCH_PX = 192, 8
GRID = IMAGE_PX // PATCH_PX  # patches a side
CELL_PX = IMAGE_PX // 3
SIZE_PX = {"small": (34, 42), "large": (50, 62)}

TEST_SEEDS = range(0, 10_000)
VALIDATION_SEEDS = range(10_000, 20_000)
TRAIN_SEEDS = 1_000_000  # this seed and all above

IGNORE = -100


@dataclass(frozen=True)
class Object:
    noun: str
    size: str
    place: str
    style: int
    x: int  # left edge, pixels
    y: int
    px: int  # side of the square it is drawn in
    flip: bool


@dataclass(frozen=True)
class Scene:
    objects: tuple[Object, ...]  # in reading order of their places
    color: str
    pattern: str


@dataclass(frozen=True)
class PatchLabels:
    """One entry a patch, row by row; IGNORE where there is nothing to learn.

    noun: 0 background, 1 + index into NOUNS; edges that are neither are IGNORE. size, style: index into
    SIZES, STYLES.
    """

    noun: NDArray[np.int64]
    size: NDArray[np.int64]
    style: NDArray[np.int64]


def random_scene(
    rng: np.random.Generator, objects: tuple[int, int] = (1, 6), among: Sequence[str] = NOUNS
) -> Scene:
    """objects: the fewest and the most."""
    count = int(rng.integers(objects[0], objects[1] + 1))
    cells = sorted(rng.choice(9, size=count, replace=False).tolist())
    nouns = rng.choice(len(among), size=count, replace=False)
    if count > 1 and rng.random() < 0.35:  # something to count: some cells share a noun
        nouns[: rng.integers(2, min(count, 4) + 1)] = nouns[0]
        rng.shuffle(nouns)
    things = tuple(_random_object(rng, among[n], cell) for n, cell in zip(nouns, cells, strict=True))
    return Scene(things, COLOR_NAMES[rng.integers(len(COLOR_NAMES))], PATTERNS[rng.integers(len(PATTERNS))])


def _random_object(rng: np.random.Generator, noun: str, cell: int) -> Object:
    size = SIZES[rng.integers(len(SIZES))]
    low, high = SIZE_PX[size]
    px = int(rng.integers(low, high + 1))
    x, y = (int(rng.integers(0, CELL_PX - px + 1)) for _ in range(2))
    row, column = divmod(cell, 3)
    return Object(noun, size, PLACES[cell], int(rng.integers(len(STYLES))), column * CELL_PX + x,
                  row * CELL_PX + y, px, bool(rng.random() < 0.5))  # fmt: skip


def draw(
    scene: Scene, sprites: Sprites, rng: np.random.Generator, window: tuple[int, int, int] = (0, 0, IMAGE_PX)
) -> tuple[NDArray[np.uint8], PatchLabels]:
    """The pixels [side, side, 3] and labels of a window (x, y, side; multiples of PATCH_PX) of the scene."""
    x0, y0, side = window
    canvas = Image.fromarray(_background(scene, rng, window))
    patches = side // PATCH_PX
    noun = np.zeros((patches, patches), np.int64)
    size, style = (np.full((patches, patches), IGNORE, np.int64) for _ in range(2))
    for thing in scene.objects:
        if not (x0 - thing.px < thing.x < x0 + side and y0 - thing.px < thing.y < y0 + side):
            continue
        sprite = Image.fromarray(sprites[NOUNS.index(thing.noun), thing.style]).resize((thing.px, thing.px))
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if thing.flip else sprite
        mask = Image.new("L", (side, side))
        mask.paste(sprite.getchannel("A"), (thing.x - x0, thing.y - y0))
        canvas.paste(sprite, (thing.x - x0, thing.y - y0), sprite)
        blocks = np.asarray(mask).reshape(patches, PATCH_PX, patches, PATCH_PX)
        coverage = blocks.mean(axis=(1, 3)) / 255.0
        noun[(coverage > 0.02) & (noun == 0)] = IGNORE
        noun[coverage >= 0.3] = 1 + NOUNS.index(thing.noun)
        size[coverage >= 0.3] = SIZES.index(thing.size)
        style[coverage >= 0.3] = thing.style
    return np.array(canvas), PatchLabels(noun.ravel(), size.ravel(), style.ravel())


def patches_of(thing: Object) -> NDArray[np.bool_]:
    """[GRID * GRID] whether the middle of the patch lies in the object's square."""
    row, column = (np.mgrid[:GRID, :GRID] + 0.5) * PATCH_PX
    across = (column > thing.x) & (column < thing.x + thing.px)
    down = (row > thing.y) & (row < thing.y + thing.px)
    inside: NDArray[np.bool_] = (across & down).ravel()
    return inside


def object_patches(scene: Scene) -> NDArray[np.bool_]:
    """[GRID * GRID] whether the patch belongs to any object."""
    shown: NDArray[np.bool_] = np.logical_or.reduce([patches_of(thing) for thing in scene.objects])
    return shown


def _background(scene: Scene, rng: np.random.Generator, window: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Two tones of the colour, mixed by the pattern, with a little grain."""
    x0, y0, side = window
    ground, tone = (np.asarray(c, np.float32) for c in COLORS[scene.color])
    y, x = np.mgrid[y0 : y0 + side, x0 : x0 + side].astype(np.float32)
    mix = _PATTERN_MIX[scene.pattern](x, y, float(rng.uniform(5, 9)))[..., None]
    shade = rng.normal(0, 4, 3).astype(np.float32) + rng.normal(0, 2.5, (side, side, 1)).astype(np.float32)
    return np.clip(ground * (1 - mix) + tone * mix + shade, 0, 255).astype(np.uint8)


def _plain(x: NDArray[np.float32], _y: NDArray[np.float32], _step: float) -> NDArray[np.float32]:
    return np.zeros_like(x)


def _striped(x: NDArray[np.float32], y: NDArray[np.float32], step: float) -> NDArray[np.float32]:
    return (((x + y) // step) % 2).astype(np.float32)


def _dotted(x: NDArray[np.float32], y: NDArray[np.float32], step: float) -> NDArray[np.float32]:
    pitch = 1.7 * step
    return (((x % pitch) - pitch / 2) ** 2 + ((y % pitch) - pitch / 2) ** 2 < (0.45 * step) ** 2).astype(
        np.float32
    )


def _checkered(x: NDArray[np.float32], y: NDArray[np.float32], step: float) -> NDArray[np.float32]:
    return ((x // step + y // step) % 2).astype(np.float32)


def _shaded(_x: NDArray[np.float32], y: NDArray[np.float32], _step: float) -> NDArray[np.float32]:
    return (2.2 * y / IMAGE_PX - 0.6).astype(np.float32)


_PATTERN_MIX = dict(zip(PATTERNS, (_plain, _striped, _dotted, _checkered, _shaded), strict=True))
