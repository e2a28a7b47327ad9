"""What is asked: ScenesBench from reserved seeds, or somebody's own questions about their own pictures.

ScenesBench has three splits, none of which any training run draws from: `test` and `validation` in the art
styles of training, on seeds of their own, and `unseen`, the test seeds in a style that no training run saw.
Each scene brings its description and a few questions; the kinds of question take turns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from model.scenes.art import load_sprites, load_unseen
from model.scenes.compose import TEST_SEEDS, VALIDATION_SEEDS, Scene, draw, random_scene
from model.scenes.language import DESCRIBE, QUESTIONS, Turn, describe
from model.scenes.words import NOUNS

Split = Literal["test", "validation", "unseen"]
SEEDS = {"test": TEST_SEEDS, "validation": VALIDATION_SEEDS, "unseen": TEST_SEEDS}
QUESTIONS_A_SCENE = 4
ITEMS_A_SCENE = 1 + QUESTIONS_A_SCENE


@dataclass(frozen=True)
class Item:
    """open_picture: gives uint8 [H, W, 3] or PIL. scene: what is in it, where that is known."""

    turn: Turn
    open_picture: Callable[[], Any]
    scene: Scene | None = None

    @cached_property
    def key(self) -> str:
        """Of the question and the picture's content."""
        pixels = np.ascontiguousarray(self.open_picture())
        said = "\n".join((self.turn.task, self.turn.prompt, self.turn.answer))
        return hashlib.sha256(said.encode() + repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:16]


def scenes_bench(sprites: Path, scenes: int, split: Split = "test") -> list[Item]:
    """ITEMS_A_SCENE items a scene: its description, and questions about it."""
    art, nouns = load_unseen(sprites) if split == "unseen" else (load_sprites(sprites), list(NOUNS))
    if scenes > len(SEEDS[split]):
        raise ValueError(f"scenes must be at most {len(SEEDS[split])} for the {split} split, not {scenes}")
    items = []
    for number, seed in enumerate(SEEDS[split][:scenes]):
        rng = np.random.default_rng(seed)
        scene = random_scene(rng, among=nouns)
        pixels, _ = draw(scene, art, rng)
        turns = [Turn("describe", DESCRIBE, describe(scene))]
        first = number * QUESTIONS_A_SCENE
        turns += [QUESTIONS[(first + i) % len(QUESTIONS)](scene, rng) for i in range(QUESTIONS_A_SCENE)]
        items += [Item(turn, lambda pixels=pixels: pixels, scene) for turn in turns]
    return items


def own_items(path: Path, images: Path | None = None) -> list[Item]:
    """A JSON list of {"image": file, "question", "answer", "task" (optional)}.

    image: relative to `images`, by default to the list's own folder. Raises ValueError naming the entry.
    """
    entries = json.loads(path.read_text())
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} must hold a JSON list of at least one entry")
    return [_own_item(entry, f"{path} entry {n}", images or path.parent) for n, entry in enumerate(entries)]


def _own_item(entry: Any, name: str, images: Path) -> Item:
    known = {"image", "question", "answer", "task"}
    if not isinstance(entry, dict) or not {"image", "question", "answer"} <= set(entry) <= known:
        raise ValueError(f"{name} must have image, question and answer, may have task, and nothing else")
    if not all(isinstance(value, str) for value in entry.values()):
        raise ValueError(f"{name}: image, question, answer and task must be strings")
    if not (images / entry["image"]).is_file():
        raise ValueError(f"{name}: image {images / entry['image']} is not there")
    return Item(
        Turn(entry.get("task", "question"), entry["question"], entry["answer"]),
        lambda: _opened(images / entry["image"], name),
    )


def _opened(path: Path, name: str) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: image {path} cannot be read: {error}") from error
