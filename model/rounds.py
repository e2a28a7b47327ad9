"""One round of all running sequences: how much each may draft, and what the governor learns of it.

Knows generations and the runner, not requests, outputs or who joins.
"""

from __future__ import annotations

from collections.abc import Sequence

from model.drafting import Row
from model.generation import Generation
from model.governor import Governor
from model.runner import RowOutcome, Runner

# A twig that has missed more tokens than this, over all rows, stays out of the rest of the answer; the last
# draft of a round that was accepted whole is missed by each.
CATCH_UP_TOKENS = 32


class Rounds:
    """governor: None where nothing is ever drafted, or drafts are not to be shortened."""

    def __init__(self, runner: Runner, governor: Governor | None) -> None:
        self.runner, self.governor = runner, governor

    def __call__(self, running: Sequence[Generation]) -> list[RowOutcome]:
        most, catch_up = self.runner.draft_tokens, max(1, CATCH_UP_TOKENS // len(running))
        budgets = [generation.budget(most, catch_up) for generation in running]
        governor = self.governor if any(budgets) else None
        limit = governor.begin(len(running), self.runner.held_tokens) if governor else most
        rows = [
            Row(g.pending, g.vector, min(budget, limit), g.eos, g.draw(), g.prompt.shift, g.unread)
            for g, budget in zip(running, budgets, strict=True)
        ]
        outcomes = self.runner.round(rows)
        if governor:
            # A row that had less room than the limit says little about what the limit brings.
            drafted = zip(outcomes, budgets, strict=True)
            governor.end([outcome.accepted for outcome, budget in drafted if budget >= max(limit, 1)])
        return outcomes
