"""Who decides which visual tokens stay: a function a method, from what a prompt can show to scores. No torch.

The twig's is the method (TTP); the others are what it is measured against at the same budget, chosen per
engine by `EngineConfig.scorer`. Invariant: a scorer sees the unpruned prompt and returns one number a visual
token, higher for what should stay.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

Scores = Sequence[float]


class PromptView(Protocol):
    """What a scorer may look at, each computed when asked for.

    grids: rows and columns of each image's visual tokens. seed: of the pictures' bytes, for what is drawn by
    lot; key: of the whole prompt as the trunk has read it.
    fork_layer, twig_layers: K and T.
    """

    @property
    def grids(self) -> Sequence[tuple[int, int]]: ...

    @property
    def seed(self) -> int: ...

    @property
    def key(self) -> int: ...

    @property
    def fork_layer(self) -> int: ...

    @property
    def twig_layers(self) -> int: ...

    def twig_attention(self) -> Scores:
        """The last prompt token's attention in the last twig layer, mean over heads."""
        ...

    def base_attention(self, layer: int) -> Scores:
        """The same in a base layer, K or above, that reads the unpruned prompt."""
        ...

    def saliency(self) -> Scores:
        """[CLS]'s attention in the vision tower's last layer, mean over heads."""
        ...


Scorer = Callable[[PromptView], Scores]


def remembering(scorer: Scorer) -> Scorer:
    """For measuring: a prompt that comes again, at another budget, has its scores reckoned once."""
    known: dict[int, Scores] = {}

    def score(view: PromptView) -> Scores:
        if view.key not in known:
            known[view.key] = scorer(view)
        return known[view.key]

    return score


def by_lot(view: PromptView) -> Scores:
    draw = random.Random(view.seed)
    return [draw.random() for rows, columns in view.grids for _ in range(rows * columns)]


def evenly(view: PromptView) -> Scores:
    """A grid at every budget: each next token falls where the chosen ones are sparsest."""
    return [
        -_turn(row, column, max(rows, columns))
        for rows, columns in view.grids
        for row in range(rows)
        for column in range(columns)
    ]


def _turn(row: int, column: int, side: int) -> float:
    """When a cell's turn comes, 0..1: the bits of its diagonal and its row, reversed and interleaved."""
    turn, share = 0.0, 0.5
    for bit in range((side - 1).bit_length()):
        for part in (row ^ column, row):
            turn += share * (part >> bit & 1)
            share /= 2
    return turn


SCORERS: Mapping[str, Scorer] = {
    "ttp": lambda view: view.twig_attention(),
    "random": by_lot,
    "grid": evenly,
    "fastv": lambda view: view.base_attention(view.fork_layer),
    "fastv_deep": lambda view: view.base_attention(view.fork_layer + view.twig_layers),
    "saliency": lambda view: view.saliency(),
}
