"""Marks of a run: one score a task, descriptions by what they name, where and how large."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from model.evaluate.answers import Answer
from model.evaluate.items import Item
from model.scenes.score import DescriptionScore, same_answer, score_description

Marks = dict[str, float]


def task_scores(items: Sequence[Item], results: Sequence[Answer]) -> Marks:
    """Task -> share right. A description's score is the mean of its parts (see `description_parts`)."""
    answered: defaultdict[str, list[bool]] = defaultdict(list)
    told = _descriptions(items, results)
    for item, result, description in zip(items, results, told, strict=True):
        if description is None:
            answered[item.turn.task].append(same_answer(result.text, item.turn.answer))
    tasks = {task: _ratio(sum(marks), len(marks)) for task, marks in sorted(answered.items())}
    parts = _parts(told)
    return {"describe": round(sum(parts.values()) / len(parts), 4)} | tasks if parts else tasks


def description_parts(items: Sequence[Item], results: Sequence[Answer]) -> Marks:
    """recall, precision: of objects named. place: of the named. size: of the placed. {} without scenes."""
    return _parts(_descriptions(items, results))


def _descriptions(items: Sequence[Item], results: Sequence[Answer]) -> list[DescriptionScore | None]:
    return [description_of(item, result) for item, result in zip(items, results, strict=True)]


def description_of(item: Item, result: Answer) -> DescriptionScore | None:
    """None where no scene is to be described."""
    if item.scene is None or item.turn.task != "describe":
        return None
    return score_description(item.scene, result.text)


def _parts(told: Sequence[DescriptionScore | None]) -> Marks:
    scores = [score for score in told if score is not None]
    if not scores:
        return {}

    def total(name: str) -> int:
        return sum(getattr(score, name) for score in scores)

    return {
        "recall": _ratio(total("named"), total("objects")),
        "precision": _ratio(total("named"), total("said")),
        "place": _ratio(total("placed"), total("named")),
        "size": _ratio(total("sized"), total("placed")),
    }


def _ratio(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0
