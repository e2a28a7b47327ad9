"""The frozen base as it answers under pruning: what it says then, and what that is worth to the twig.

Rows that are dropped are not computed, and sequences are taken one by one, so that each has its own.
Knows nothing of the twig but its ranks: the looks of last prompt tokens, float32 [turns, N] a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.pruning import pruned_tokens
from model.train.reading import LEAST, FrozenBase, Reading, through

# Around the R'-th rank a token is kept by lot, the more evenly the nearer its rank's logarithm is to that
# (`SPREAD`, nats); how much it is kept then is near 0 or 1, the nearer the smaller `EVENNESS`. Of 2 R' tokens
# of the highest rank, that is: none beyond takes part.
SPREAD, EVENNESS, MARGIN = 0.4, 0.5, 2.0
ANSWERS = 3  # of a sequence: each costs a pass of its own


@torch.no_grad()
def base_distribution(base: FrozenBase, reading: Reading, ranks: Sequence[Tensor], share: float) -> Tensor:
    """[A, vocabulary]: what the base says next where it is pruned to R-bar = share * M.

    One choice of visual tokens a sequence, by what all its last prompt tokens look at together.
    """
    said = []
    rows = list(reading.split(reading.target_at))
    for b, (visual, rank) in enumerate(zip(reading.visual, ranks, strict=True)):
        if not len(rows[b]):
            continue
        text = ~visual
        text[rows[b]] = True  # a prompt may end in its picture
        kept, top = text, text
        if share == 1.0 or not visual.any():
            kept = top = torch.ones_like(visual)
        else:
            kept = text | _chosen(rank, visual, base, share)
        said.append(base.logits(_pruned(base, reading, b, kept, top)[rows[b]]))
    return torch.cat(said).float().softmax(-1)


def pruning_loss(
    base: FrozenBase, reading: Reading, ranks: Sequence[Tensor], share: float, draws: torch.Generator
) -> Tensor:
    """KL from what the base says with every visual token to what it says with about R' of them, a mean over
    answer tokens; a few answers of each sequence, by lot.

    Which tokens are kept is drawn with odds that the ranks decide, so the ranks learn from what is lost
    without a token, and of near ones from both. The layers take a kept token's odds as a bias on attention.
    """
    total, tokens = reading.hidden.new_zeros((), dtype=torch.float32), 0
    rows, turns = list(reading.split(reading.target_at)), reading.turns
    for b, (visual, rank) in enumerate(zip(reading.visual, ranks, strict=True)):
        if not (len(rank) and visual.any()):
            continue
        whole = _whole(base, reading, b, rows[b])
        for own in _answers(rows[b], turns[b], draws):
            seen = _seen(reading, b, int(own.rows[-1]))
            odds = _odds(rank[own.turn], seen & visual, base, share, draws)
            text = seen & ~visual
            text[own.rows] = True  # a prompt may end in its picture
            hidden = _pruned(base, reading, b, text | odds.isfinite(), text, odds.masked_fill(text, 0.0))
            said = base.logits(hidden[own.rows]).float().log_softmax(-1)
            total = total + F.kl_div(said, whole[own.at], reduction="sum", log_target=True)
            tokens += len(own.rows)
    return total / max(tokens, 1)


@dataclass(frozen=True)
class _Answer:
    """turn: which of its sequence. rows: [A'] in the sequence. at: [A'] among its answers' rows."""

    turn: int
    rows: Tensor
    at: Tensor


def _answers(rows: Tensor, turns: Tensor, draws: torch.Generator) -> list[_Answer]:
    drawn = torch.randperm(int(turns[-1]) + 1, generator=draws)[:ANSWERS].tolist()
    found = [(turn, torch.nonzero(turns == turn).flatten()) for turn in drawn]
    return [_Answer(turn, rows[at], at) for turn, at in found]


@torch.no_grad()
def _whole(base: FrozenBase, reading: Reading, b: int, rows: Tensor) -> Tensor:
    """[A, vocabulary]: log of what the unpruned base says at a sequence's rows."""
    everyone = torch.ones_like(reading.visual[b])
    return base.logits(_pruned(base, reading, b, everyone, everyone)[rows]).float().log_softmax(-1)


def _seen(reading: Reading, b: int, row: int) -> Tensor:
    """bool [N]: what the token of a row sees."""
    mask, _ = reading.alone(b)
    if mask is None:
        return torch.arange(reading.hidden.shape[1], device=reading.hidden.device) <= row
    return mask[row] == 0


def _odds(rank: Tensor, visual: Tensor, base: FrozenBase, share: float, draws: torch.Generator) -> Tensor:
    """[N]: log of how much each visual token is kept, R' of them in the mean; -inf where it is out."""
    count, tokens = _count(visual, base, share), int(visual.sum())
    if count == tokens:
        return torch.zeros_like(rank).masked_fill(~visual, -torch.inf)
    score = rank.clamp_min(LEAST).log()
    near = score.detach().masked_fill(~visual, -torch.inf)
    last = near.sort(descending=True).values[min(round(MARGIN * count), tokens - 1)]
    near = near.masked_fill(near < last, -torch.inf)
    lot = torch.rand(score.shape, generator=draws).clamp(1e-6, 1 - 1e-6).logit().to(score)
    kept = F.logsigmoid(((score - _cut(near, count)) / SPREAD + lot) / EVENNESS)
    return kept.masked_fill(near.isinf(), -torch.inf)


def _cut(score: Tensor, count: int) -> Tensor:
    """The score at which a token is kept with even odds, so that `count` are in the mean (by bisection)."""
    low, high = score[score.isfinite()].min() - 50 * SPREAD, score.max() + 50 * SPREAD
    for _ in range(40):
        middle = (low + high) / 2
        more = ((score - middle) / SPREAD).sigmoid().sum() > count
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    return (low + high) / 2


def _count(visual: Tensor, base: FrozenBase, share: float) -> int:
    """R' of a sequence with these visual tokens."""
    tokens = int(visual.sum())
    count = pruned_tokens(round(share * tokens), base.depth, tokens, base.fork_layer, base.drop_layer)
    return min(max(count, 0), tokens)


def _chosen(rank: Tensor, visual: Tensor, base: FrozenBase, share: float) -> Tensor:
    """bool [N]: the R' visual tokens of the highest rank."""
    mean = rank.mean(0).masked_fill(~visual, -1.0)
    best = mean.topk(_count(visual, base, share)).indices
    return torch.zeros_like(visual).index_fill(0, best, True)


def _pruned(
    base: FrozenBase, reading: Reading, b: int, kept: Tensor, top: Tensor, bias: Tensor | None = None
) -> Tensor:
    """[N, hidden] behind the last layer, dropped rows zero.

    kept, top: bool [N], who K.. and F.. see. bias: [N], on the attention that each token gets in K..F-1.
    """
    hidden, rows = reading.hidden[b], torch.nonzero(kept).flatten()
    x = through(base.middle, hidden[None, rows], _inputs(reading, b, rows, bias))
    last = torch.nonzero(top).flatten()
    x = through(base.top, x[:, top[rows]], _inputs(reading, b, last))
    return torch.zeros_like(hidden).index_copy(0, last, x[0])


def _inputs(reading: Reading, b: int, rows: Tensor, bias: Tensor | None = None) -> dict[str, Any]:
    mask, (cos, sin) = reading.alone(b)
    if mask is not None:
        mask = mask[rows][:, rows]
    elif bias is not None:
        mask = torch.full((len(rows), len(rows)), -torch.inf, device=rows.device).triu(1)
    if mask is not None and bias is not None:
        mask = mask + bias[rows]
    return {
        "attention_mask": None if mask is None else mask[None, None].to(reading.hidden.dtype),
        "position_embeddings": (cos[None, rows], sin[None, rows]),
    }
