"""The keep-map as a picture: what the vision tower saw, with the patches that pruning dropped dimmed.

Invariant: pixels of kept patches are those of the picture the tower saw. PIL alone; no engine, no torch.
"""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image, ImageEnhance, ImageOps

from model.card import ImageSpec

PATCH_PX = 24
GROUND = (24, 26, 25)
DIMMED = 0.72  # the ground's share where a patch was pruned


def keep_map(
    picture: Image.Image,
    spec: ImageSpec,
    grid: tuple[int, int],
    kept: Iterable[int],
    *,
    patch_px: int = PATCH_PX,
) -> Image.Image:
    """RGB [rows * patch_px, columns * patch_px]. kept: row-major indices into the grid of [rows, columns]."""
    rows, columns = grid
    indices = set(kept)
    if not indices <= set(range(rows * columns)):
        raise ValueError(f"kept must be indices of a grid of {rows} by {columns}, 0 to {rows * columns - 1}")
    seen = as_seen(picture, spec, (columns * patch_px, rows * patch_px))
    mask = Image.new("L", (columns, rows))
    mask.putdata([255 if index in indices else 0 for index in range(rows * columns)])
    return Image.composite(seen, _dimmed(seen), mask.resize(seen.size, Image.Resampling.NEAREST))


def as_seen(picture: Image.Image, spec: ImageSpec, size: tuple[int, int]) -> Image.Image:
    """The part of the picture that the tower is shown, by `spec.fit`, as RGB of (width, height)."""
    rgb = picture.convert("RGB")
    if spec.dynamic is not None:
        return rgb.resize(size, Image.Resampling.BICUBIC)
    if spec.fit == "pad":
        return ImageOps.pad(rgb, size, Image.Resampling.BICUBIC, color=tuple(spec.pad_color))
    if spec.fit == "crop":
        return ImageOps.fit(rgb, size, Image.Resampling.BICUBIC)
    return rgb.resize(size, Image.Resampling.BICUBIC)


def _dimmed(picture: Image.Image) -> Image.Image:
    grey = ImageEnhance.Color(picture).enhance(0.35)
    return Image.blend(grey, Image.new("RGB", picture.size, GROUND), DIMMED)
