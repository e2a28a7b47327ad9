"""Training batches for base and twig: random scenes, visual tokens and questions, from one seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from model.scenes.compose import GRID
from model.scenes.language import turns
from model.train.features import FeaturePool
from model.train.pack import Packed, Packer

IMAGE_TOKENS = GRID * GRID


@dataclass(frozen=True)
class Stage:
    """What a step sees: visual tokens (least, most) and questions a scene, scenes a batch."""

    visual: tuple[int, int]
    questions: int
    batch: int
    steps: int


def random_batch(
    pool: FeaturePool, packer: Packer, stage: Stage, seed: list[int]
) -> tuple[Packed, torch.Tensor]:
    """A packed batch and its visual tokens [B, V, tower hidden] before projection."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(pool.scenes), size=stage.batch)
    count = int(rng.integers(stage.visual[0], stage.visual[1] + 1))
    kept = [np.sort(rng.choice(IMAGE_TOKENS, size=count, replace=False)) for _ in picks]
    asked = [turns(pool.scenes[pick], rng, stage.questions) for pick in picks]
    return packer.pack(asked, kept), pool.visual(picks, kept)
