"""Self-speculation as pure rules: how many drafts, when to stop, what is accepted. No tensors.

Invariant: the emitted tokens are what the base alone would have chosen; a draft changes only their price.
Knows nothing of caches or layers (design section 1, SSD).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

DraftStop = Literal["eos", "confidence", "budget"]


def draft_budget(draft_tokens: int, max_tokens: int, produced: int) -> int:
    """At most so many drafts that the verifier's own token still fits."""
    return max(0, min(draft_tokens, max_tokens - produced - 1))


def drafting_stops(token: int, probability: float, threshold: float, eos: frozenset[int]) -> bool:
    """After this token, which stays in the draft, no other is drafted."""
    return token in eos or probability < threshold


def draft_stop(draft: Sequence[int], budget: int, eos: frozenset[int]) -> DraftStop | None:
    """Why a finished draft is not longer; None where nothing was drafted."""
    if not draft:
        return None
    if draft[-1] in eos:
        return "eos"
    return "budget" if len(draft) >= budget else "confidence"


def accept(draft: Sequence[int], verified: Sequence[int]) -> list[int]:
    """The longest agreeing prefix of the draft, then the base's own next token (greedy).

    verified[i] is the base's choice after the pending token and i drafts: one more than drafts.
    """
    agreed = 0
    while agreed < len(draft) and draft[agreed] == verified[agreed]:
        agreed += 1
    return [*draft[:agreed], verified[agreed]]


def until_eos(tokens: Sequence[int], eos: frozenset[int]) -> list[int]:
    """The tokens up to and with the first EOS."""
    for index, token in enumerate(tokens):
        if token in eos:
            return list(tokens[: index + 1])
    return list(tokens)
