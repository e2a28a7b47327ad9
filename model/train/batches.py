"""Training batches for base and twig: random scenes, visual tokens and questions, from one seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from model.scenes.compose import GRID, Scene, object_patches
from model.scenes.language import ask_each, ask_list, turns
from model.train.features import FeaturePool
from model.train.lessons import STRIPES
from model.train.pack import Packed, Packer
from model.train.processes import ALONE, Processes

IMAGE_TOKENS = GRID * GRID
OF_OBJECTS = 10.0  # times as likely as the ground, where pruning chooses


@dataclass(frozen=True)
class Stage:
    """What a step sees.

    visual: visual tokens a scene (least, most), half of them of objects unless all are shown.
    descriptions, questions: turns a scene. hidden: share of the steps in which the layers after the drop
    layer see text alone, as they will under pruning. each: the questions of every noun besides, how many and
    where. lists: a list of the objects besides, and its words before a noun counted each by itself.
    """

    visual: tuple[int, int]
    questions: int
    batch: int
    steps: int
    hidden: float = 0.0
    descriptions: int = 1
    each: bool = False
    lists: bool = False


class Batch(NamedTuple):
    """visual: [B, V, tower hidden], before projection. scenes: [B], that are shown."""

    packed: Packed
    visual: torch.Tensor
    scenes: list[Scene]


def random_batch(
    pool: FeaturePool, packer: Packer, stage: Stage, seed: list[int], processes: Processes = ALONE
) -> Batch:
    """This process's share of it."""
    rng = np.random.default_rng(seed)
    picks = rng.choice(len(pool.scenes), size=stage.batch)
    count = int(rng.integers(stage.visual[0], stage.visual[1] + 1))
    kept = [random_visual_tokens(pool.scenes[pick], rng, count) for pick in picks]
    scenes = [pool.scenes[pick] for pick in picks]
    asked = [turns(scene, rng, stage.questions, stage.descriptions) for scene in scenes]
    if stage.each:
        asked = [some + ask_each(scene, rng) for some, scene in zip(asked, scenes, strict=True)]
    if stage.lists:
        asked = [[*some, ask_list(scene, rng)] for some, scene in zip(asked, scenes, strict=True)]
    own = slice(processes.rank, None, processes.count)
    return Batch(packer.pack(asked[own], kept[own]), pool.visual(picks[own], kept[own]), scenes[own])


def random_visual_tokens(scene: Scene, rng: np.random.Generator, count: int) -> np.ndarray:
    """`count` ascending indices, object patches as likely as all the ground together; every second time
    rather those that pruning leaves, of objects and in the stripes of `model.train.lessons`.
    """
    shown = object_patches(scene)
    odds = np.where(shown, 1 / shown.sum(), 1 / (~shown).sum())
    if rng.random() < 0.5:
        odds *= np.where(shown, OF_OBJECTS, 1.0) * np.exp(STRIPES * (np.cos(np.arange(IMAGE_TOKENS)) - 1))
    return np.sort(rng.choice(IMAGE_TOKENS, size=count, replace=False, p=odds / odds.sum()))
