"""`twigserve evaluate`: how well a checkpoint sees held-out scenes, with and without pruning.

Test seeds are never trained on (`model.scenes.compose.TEST_SEEDS`). RelAcc is the paper's: the mean over
tasks of pruned accuracy divided by unpruned accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.engine import Engine
from model.request import Request, Result, SamplingParams
from model.scenes.art import load_sprites
from model.scenes.compose import TEST_SEEDS, Scene, draw, random_scene
from model.scenes.language import DESCRIBE, QUESTIONS, Turn, describe
from model.scenes.score import DescriptionScore, same_answer, score_description

MAX_TOKENS = 128


@dataclass(frozen=True)
class Item:
    scene: Scene
    pixels: np.ndarray  # uint8 [H, W, 3]
    turn: Turn


def held_out_items(sprites: Path, scenes: int, seeds: range = TEST_SEEDS) -> list[Item]:
    """For each of `scenes` held-out scenes its description and one question, the kinds taking turns."""
    art = load_sprites(sprites)
    items = []
    for number, seed in enumerate(seeds[:scenes]):
        rng = np.random.default_rng(seed)
        scene = random_scene(rng)
        pixels, _ = draw(scene, art, rng)
        items.append(Item(scene, pixels, Turn("describe", DESCRIBE, describe(scene))))
        items.append(Item(scene, pixels, QUESTIONS[number % len(QUESTIONS)](scene, rng)))
    return items


def ask(
    engine: Engine, items: list[Item], retained_tokens: int, tick: Callable[[int], object]
) -> list[Result]:
    """One result an item, in order; the engine batches as it can."""
    sampling = SamplingParams(max_tokens=MAX_TOKENS)
    order = {}
    for number, item in enumerate(items):
        request = Request(
            prompt=item.turn.prompt, images=[item.pixels], sampling=sampling, retained_tokens=retained_tokens
        )
        order[engine.add(request)] = number
    results: list[Result | None] = [None] * len(items)
    while engine.has_work():
        for output in engine.step():
            if output.result is not None:
                results[order[output.request_id]] = output.result
                tick(1)
    return [result for result in results if result is not None]


def _ratio(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0


def _describe_tasks(scores: list[DescriptionScore]) -> dict[str, float]:
    def total(name: str) -> int:
        return sum(getattr(score, name) for score in scores)

    return {
        "describe_recall": _ratio(total("named"), total("objects")),
        "describe_precision": _ratio(total("named"), total("said")),
        "describe_place": _ratio(total("placed"), total("named")),
        "describe_size": _ratio(total("sized"), total("placed")),
        "describe_background": _ratio(total("background"), len(scores)),
    }


def task_scores(items: list[Item], results: Iterable[Result]) -> dict[str, float]:
    described: list[DescriptionScore] = []
    answered: dict[str, list[bool]] = {}
    for item, result in zip(items, results, strict=True):
        if item.turn.task == "describe":
            described.append(score_description(item.scene, result.text))
        else:
            answered.setdefault(item.turn.task, []).append(same_answer(result.text, item.turn.answer))
    tasks = _describe_tasks(described)
    return tasks | {task: _ratio(sum(marks), len(marks)) for task, marks in sorted(answered.items())}


def evaluate(
    engine: Engine, items: list[Item], budgets: list[int], tick: Callable[[int], object] = lambda _: None
) -> list[dict[str, Any]]:
    """The unpruned model first, then TTP at each budget R-bar; entries as the design's JSON has them."""
    report: list[dict[str, Any]] = []
    unpruned: dict[str, float] = {}
    for retained in [engine.card.image_tokens, *budgets]:
        results = ask(engine, items, retained, tick)
        tasks = task_scores(items, results)
        unpruned = unpruned or tasks
        relative = [tasks[name] / score for name, score in unpruned.items() if score]
        drafted = sum(result.draft_tokens for result in results)
        report.append({
            "method": "none" if retained == engine.card.image_tokens else "ttp", "retained_tokens": retained,
            "rel_acc": round(sum(relative) / len(relative), 4), "tasks": tasks,
            "acceptance": _ratio(sum(result.accepted_tokens for result in results), drafted),
        })  # fmt: skip
    return report


def print_table(results: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "R̄", "RelAcc", "acceptance", *results[0]["tasks"])
    for entry in results:
        figures = [f"{score:.3f}" for score in entry["tasks"].values()]
        table.add_row(
            entry["method"], str(entry["retained_tokens"]), f"{entry['rel_acc']:.3f}",
            f"{entry['acceptance']:.3f}", *figures,
        )  # fmt: skip
    Console().print(table)
