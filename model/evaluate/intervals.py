"""How far one way is ahead of another, and what of that is the choice of pictures: a paired bootstrap.

Pictures are drawn again with all that is asked about them, for every way alike, and RelAcc is reckoned anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.evaluate.answers import Answer
from model.evaluate.items import Item
from model.evaluate.marks import description_of
from model.scenes.score import same_answer

DRAWS, AT_ONCE = 1000, 100
MIDDLE = (2.5, 97.5)  # percentiles: the 95 % interval
Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tally:
    """right, of: task -> [pictures, parts], counted; a task's score is the mean of its parts' shares."""

    right: dict[str, Counts]
    of: dict[str, Counts]

    def scores(self, draws: Counts) -> dict[str, Counts]:
        """draws: [D, pictures], how often each is in. Returns task -> [D], 0 where nothing is asked."""
        shares = {task: (draws @ self.right[task], draws @ of) for task, of in self.of.items()}
        return {
            task: np.divide(right, of, out=np.zeros_like(of), where=of > 0).mean(1)
            for task, (right, of) in shares.items()
        }


def tally(items: Sequence[Item], answers: Sequence[Answer]) -> Tally:
    pictures = _pictures(items)
    rows: defaultdict[str, list[tuple[int, list[int], list[int]]]] = defaultdict(list)
    for item, answer, picture in zip(items, answers, pictures, strict=True):
        said = description_of(item, answer)
        if said is None:
            right, of = [int(same_answer(answer.text, item.turn.answer))], [1]
        else:
            right = [said.named, said.named, said.placed, said.sized]
            of = [said.objects, said.said, said.named, said.placed]
        rows[item.turn.task].append((picture, right, of))
    count = max(pictures, default=-1) + 1
    return Tally(
        {task: _summed([(at, right) for at, right, _ in some], count) for task, some in rows.items()},
        {task: _summed([(at, of) for at, _, of in some], count) for task, some in rows.items()},
    )


def _pictures(items: Sequence[Item]) -> list[int]:
    """A number an item: a scene's items share one; where no scene is known each has its own."""
    numbers: dict[int, int] = {}
    return [
        numbers.setdefault(id(item if item.scene is None else item.scene), len(numbers)) for item in items
    ]


def _summed(rows: list[tuple[int, list[int]]], pictures: int) -> Counts:
    total = np.zeros((pictures, len(rows[0][1])))
    np.add.at(total, [at for at, _ in rows], [counts for _, counts in rows])
    return total


def ahead(first: Tally, second: Tally, unpruned: Tally) -> tuple[float, float]:
    """The 95 % interval of RelAcc of the first less that of the second."""
    pictures = len(next(iter(unpruned.of.values())))
    rng, even = np.random.default_rng(0), np.full(pictures, 1 / pictures)
    draws = (rng.multinomial(pictures, even, AT_ONCE).astype(float) for _ in range(DRAWS // AT_ONCE))
    low, high = np.percentile([_leads(first, second, unpruned, some) for some in draws], MIDDLE)
    return round(float(low), 4), round(float(high), 4)


def _leads(first: Tally, second: Tally, unpruned: Tally, draws: Counts) -> Counts:
    """[D]"""
    ours, theirs, whole = (t.scores(draws) for t in (first, second, unpruned))
    lead, tasks = np.zeros(len(draws)), np.zeros(len(draws))
    for task, score in whole.items():  # of a task that the unpruned model cannot do nothing is told
        lead += np.divide(ours[task] - theirs[task], score, out=np.zeros_like(score), where=score > 0)
        tasks += score > 0
    return lead / np.maximum(tasks, 1)
