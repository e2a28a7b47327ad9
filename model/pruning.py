"""How many visual tokens survive, and which: the budget arithmetic of TTP and the choice by score. No torch.

Invariant: what is kept is decided once, in the prefill, from the unpruned prompt.
Knows nothing of layers' weights or caches; scores come in as plain numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.request import RequestError
from model.scorers import Scores


def pruned_tokens(retained: int, layers: int, image_tokens: int, fork_layer: int, drop_layer: int) -> int:
    """R' of R-bar: visual tokens that layers K..F-1 see so that the average over all L layers is R-bar.

    R' = ceil((L R-bar - K M) / (F - K)), arXiv 2503.14075. Out of 0..M where R-bar is impossible.
    """
    return -((fork_layer * image_tokens - layers * retained) // (drop_layer - fork_layer))


def legal_range(layers: int, image_tokens: int, fork_layer: int, drop_layer: int) -> tuple[int, int]:
    """The smallest and the largest R-bar with 0 <= R' <= M."""
    # R' = ceil(x) >= 0 means x > -1, so L R-bar > K M - (F - K).
    low = (fork_layer * image_tokens - (drop_layer - fork_layer)) // layers + 1
    return max(0, low), drop_layer * image_tokens // layers


def retained_average(kept: int, layers: int, image_tokens: int, fork_layer: int, drop_layer: int) -> float:
    """The average number of visual tokens over all layers that R' = `kept` really gives."""
    return (fork_layer * image_tokens + (drop_layer - fork_layer) * kept) / layers


def kept_budget(retained: int, layers: int, image_tokens: int, fork_layer: int, drop_layer: int) -> int:
    """R' of a requested R-bar; `retained == image_tokens` means no pruning. Raises RequestError."""
    if retained == image_tokens:
        return image_tokens
    low, high = legal_range(layers, image_tokens, fork_layer, drop_layer)
    if not low <= retained <= high:
        raise RequestError(
            f"retained_tokens {retained} is impossible with {image_tokens} image tokens: "
            f"it must lie in {low}..{high}, or be {image_tokens} for no pruning",
            param="retained_tokens",
        )
    return pruned_tokens(retained, layers, image_tokens, fork_layer, drop_layer)


def share_of(share: float, layers: int, image_tokens: int, fork_layer: int, drop_layer: int) -> int:
    """R-bar for a share of M: M for the whole, else the legal R-bar nearest to it."""
    return nearest_legal(round(share * image_tokens), layers, image_tokens, fork_layer, drop_layer)


def nearest_legal(retained: int, layers: int, image_tokens: int, fork_layer: int, drop_layer: int) -> int:
    """The legal R-bar nearest to one that no caller named; M for M, and where nothing else is legal."""
    low, high = legal_range(layers, image_tokens, fork_layer, drop_layer)
    if retained == image_tokens or low > high:
        return image_tokens
    return min(max(retained, low), high)


def quality_tiers(image_tokens: int, low: int, high: int, pruning: bool) -> dict[str, int]:
    """The default tiers of one image (64/128/192/576 for M = 576), less those that are not legal."""
    tiers = {
        "fast": round(image_tokens / 9),
        "balanced": round(2 * image_tokens / 9),
        "best": round(image_tokens / 3),
        "exact": image_tokens,
    }
    return legal_tiers(tiers, image_tokens, low, high, pruning)


def legal_tiers(
    tiers: dict[str, int], image_tokens: int, low: int, high: int, pruning: bool
) -> dict[str, int]:
    return {
        name: retained
        for name, retained in tiers.items()
        if retained == image_tokens or (pruning and low <= retained <= high)
    }


def top_scores(scores: Scores, count: int) -> list[int]:
    """The `count` best-scored indices, ascending; of equals the earlier one wins."""
    ranked = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    return sorted(ranked[:count])


@dataclass(frozen=True)
class Survivors:
    """Prompt positions, ascending: what layers K..F-1 (`kept`) and F..L-1 (`text`) see of a prompt."""

    kept: list[int]
    text: list[int]


def survivors(prompt_tokens: int, visual: Sequence[int], kept_indices: Sequence[int]) -> Survivors:
    """Text and the chosen visual tokens, then text alone.

    The last prompt token always stays: its row is the one that predicts, also where the prompt ends in
    its image.
    """
    dropped_text = set(visual) - {prompt_tokens - 1}
    chosen = {visual[index] for index in kept_indices}
    text = [position for position in range(prompt_tokens) if position not in dropped_text]
    kept = [p for p in range(prompt_tokens) if p not in dropped_text or p in chosen]
    return Survivors(kept=kept, text=text)


def everything(prompt_tokens: int) -> Survivors:
    """Pruning off: every layer sees every token."""
    positions = list(range(prompt_tokens))
    return Survivors(kept=positions, text=positions)
