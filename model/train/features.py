"""Visual features of many training scenes from the frozen tower, computed once and kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPVisionModel

from model.scenes.art import load_sprites
from model.scenes.compose import GRID, TRAIN_SEEDS, Scene, draw, random_scene
from model.train.processes import ALONE, Processes
from model.train.stream import normalize
from model.train.tower import TOWER_CONFIG, penultimate

# Far from the seeds that the tower saw, so that the projector meets the tower's generalisation.
FIRST_SEED = TRAIN_SEEDS + 1_000_000
BATCH = 16


@dataclass(frozen=True)
class FeaturePool:
    """features: float16 [scenes, M, hidden], memory-mapped; scene i has seed FIRST_SEED + i."""

    features: np.ndarray
    scenes: list[Scene]

    def visual(self, picks: np.ndarray, kept: list[np.ndarray]) -> torch.Tensor:
        """[B, V, hidden]: the chosen visual tokens of the chosen scenes."""
        return torch.stack(
            [torch.from_numpy(self.features[p][k]) for p, k in zip(picks, kept, strict=True)]
        ).float()


@torch.inference_mode()
def tower_features(tower: CLIPVisionModel, pixels: np.ndarray) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> [B, M, hidden] as LLaVA reads them."""
    positions = torch.arange(GRID * GRID, device=tower.device).expand(len(pixels), -1)
    return penultimate(tower, normalize(torch.from_numpy(pixels).to(tower.device)), positions)[:, 1:]


def build_pool(
    tower: CLIPVisionModel,
    sprites_path: Path,
    out: Path,
    count: int,
    tick: Callable[[int], object],
    processes: Processes = ALONE,
) -> FeaturePool:
    """Computes what is missing in `out` (resumable), a batch to each process in turn, and opens it."""
    done_path = out.with_suffix(".done")
    done = int(done_path.read_text()) if done_path.exists() else 0
    if not done:
        shape = (count, GRID * GRID, TOWER_CONFIG.hidden_size)
        processes.in_turn(lambda: np.lib.format.open_memmap(out, "w+", np.float16, shape))
    store = np.lib.format.open_memmap(out, "r+")
    sprites = load_sprites(sprites_path)
    scenes = []
    for number, start in enumerate(range(0, count, BATCH)):
        rngs = [np.random.default_rng(FIRST_SEED + i) for i in range(start, min(start + BATCH, count))]
        batch = [random_scene(rng) for rng in rngs]
        scenes += batch
        own = number % processes.count == processes.rank
        if own and start >= done:
            pixels = np.stack([draw(s, sprites, rng)[0] for s, rng in zip(batch, rngs, strict=True)])
            store[start : start + len(batch)] = tower_features(tower, pixels).cpu().numpy().astype(np.float16)
        last = number % processes.count == processes.count - 1 or start + BATCH >= count
        if last and start >= done:
            processes.wait()
            if processes.lead:
                done_path.write_text(str(start + len(batch)))
        tick(len(batch))
    return FeaturePool(store, scenes)
