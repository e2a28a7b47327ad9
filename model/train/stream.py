"""Endless training scenes for the tower, drawn in a worker process.

Invariant: sample i of a run always has seed TRAIN_SEEDS + i, so a resumed run goes on where it stopped
and no held-out seed is ever drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from model.scenes.art import load_sprites
from model.scenes.compose import GRID, IMAGE_PX, PATCH_PX, TRAIN_SEEDS, Scene, draw, random_scene
from model.scenes.words import COLOR_NAMES, NOUNS, PATTERNS
from model.train.processes import Processes

CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [..., H, W, 3] -> float [..., 3, H, W], as CLIP's image processor does."""
    mean, std = CLIP_MEAN.to(pixels.device), CLIP_STD.to(pixels.device)
    return (pixels.movedim(-1, -3).float() / 255.0 - mean) / std


def window_positions(window: tuple[int, int, int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Indices of a window's patches in the full grid, row by row."""
    x, y, side = (v // PATCH_PX for v in window)
    rows, columns = np.mgrid[y : y + side, x : x + side]
    return (rows * GRID + columns).ravel()


class WindowStream(IterableDataset[dict[str, Any]]):
    """Windows of `side` pixels around a random object, with dense labels, from sample `start` on.

    objects: the fewest and the most of the scenes that they are cut from. every: samples from one
    to the next.
    """

    def __init__(self, sprites: Path, side: int, objects: tuple[int, int], start: int, every: int) -> None:
        self.sprites, self.side, self.objects = sprites, side, objects
        self.start, self.every = start, every

    def __iter__(self) -> Iterator[dict[str, Any]]:
        sprites = load_sprites(self.sprites)
        worker = get_worker_info()
        step, index = self.every, self.start
        if worker:
            step, index = step * worker.num_workers, index + step * worker.id
        while True:
            rng = np.random.default_rng(TRAIN_SEEDS + index)
            scene = random_scene(rng, self.objects)
            window = self._window(scene, rng)
            pixels, labels = draw(scene, sprites, rng, window)
            present = np.zeros(len(NOUNS), np.float32)
            present[np.unique(labels.noun[labels.noun > 0]) - 1] = 1.0
            yield {"pixels": pixels, "positions": window_positions(window), "noun": labels.noun,
                   "size": labels.size, "style": labels.style, "present": present,
                   "color": COLOR_NAMES.index(scene.color),
                   "pattern": PATTERNS.index(scene.pattern)}  # fmt: skip
            index += step

    def _window(self, scene: Scene, rng: np.random.Generator) -> tuple[int, int, int]:
        if self.side == IMAGE_PX:
            return 0, 0, IMAGE_PX
        target = scene.objects[rng.integers(len(scene.objects))]
        jitter = max(4, (self.side - target.px) // 2)
        corner = []
        for low in (target.x, target.y):
            middle = low + target.px // 2 - self.side // 2 + int(rng.integers(-jitter, jitter + 1))
            corner.append(min(max(middle // PATCH_PX * PATCH_PX, 0), IMAGE_PX - self.side))
        return corner[0], corner[1], self.side


def window_loader(
    sprites: Path, side: int, objects: tuple[int, int], batch: int, start: int, processes: Processes
) -> DataLoader[dict[str, Any]]:
    """This process's share of each batch."""
    stream = WindowStream(sprites, side, objects, start + processes.rank, processes.count)
    return DataLoader(stream, batch_size=batch // processes.count, num_workers=1, prefetch_factor=4)
