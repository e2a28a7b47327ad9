"""The ways in which items are asked: a method of pruning at a budget, and how it drafts. No engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.card import ModelCard

NONE = "none"  # the method that prunes nothing
# Budgets R-bar of 576 visual tokens; of another M the same shares.
BUDGETS, BUDGETS_OF = (192, 128, 64, 40), 576


@dataclass(frozen=True)
class Way:
    """retained: R-bar, of a picture as large as the model card's. drafts, threshold: gamma and theta."""

    method: str
    retained: int
    drafts: int
    threshold: float

    @property
    def name(self) -> str:
        return f"{self.method}/{self.retained}/{self.drafts}/{self.threshold:g}"


def default_budgets(card: ModelCard) -> list[int]:
    """Those that are legal for this model."""
    budgets = [round(budget * card.image_tokens / BUDGETS_OF) for budget in BUDGETS]
    return [budget for budget in budgets if card.retained_min <= budget <= card.retained_max]


def all_ways(
    card: ModelCard, methods: Sequence[str], budgets: Sequence[int], drafts: int, threshold: float
) -> list[Way]:
    """The unpruned model first, then each method at each budget."""
    pruned = [Way(method, budget, drafts, threshold) for method in methods for budget in budgets]
    return [Way(NONE, card.image_tokens, drafts, threshold), *pruned]
