"""What a twig is taught: the next token, and where to look.

The next token is the reference text's (the paper), or the base's own distribution under pruning, which is
what decides whether a draft is accepted. Where to look is `foresight`: the attention of the twig's last layer
at the last prompt token, which ranks the visual tokens, is led to where the base will look while it gives the
whole answer. Next-token loss alone asks of that token only what the first word needs. Neither needs labels,
so both go for any base and any data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from model.pruning import pruned_tokens
from model.train.reading import FrozenBase, Reading, looks, through

Draft = Literal["text", "base"]
# Budgets that the base's own distribution is asked under, as shares of M: the tiers of a request.
SHARES = (1 / 9, 2 / 9, 1 / 3, 1.0)


@dataclass(frozen=True)
class Lessons:
    """draft: whose next token is learned. foresight_weight: 0 for none.

    foresight_steps: it is taught every so many steps; the base's look at a batch costs three times the
    twig's own step.
    """

    draft: Draft = "text"
    foresight_weight: float = 0.6
    foresight_steps: int = 3

    def looks_ahead(self, step: int) -> bool:
        return self.foresight_weight > 0 and step % self.foresight_steps == 0


def twig_loss(
    twig: Any, base: FrozenBase, reading: Reading, lessons: Lessons, step: int, share: float
) -> tuple[Tensor, Tensor]:
    """The loss, a mean over the answer tokens, and the twig's logits there [A, vocabulary].

    twig: `model.train.twig_module.Twig`, or what wraps it. share: of M, where the base is asked.
    """
    ahead = lessons.looks_ahead(step) and bool(reading.visual.any())
    logits, ranks = twig(reading, ahead or lessons.draft == "base")
    if not len(reading.target):  # no answer is left of what was cut
        return logits.sum() * 0, logits
    if lessons.draft == "base":
        taught = base_distribution(base, reading, ranks, share)
        loss = F.kl_div(logits.float().log_softmax(-1), taught, reduction="batchmean")
    else:
        loss = F.cross_entropy(logits.float(), reading.target)
    if ahead:
        loss = loss + lessons.foresight_weight * foresight_loss(ranks, foresight(base, reading), reading)
    return loss, logits


@torch.no_grad()
def foresight(base: FrozenBase, reading: Reading) -> list[Tensor]:
    """How much each answer's tokens look at each visual token: for each sequence [its turns, V], sum 1.

    Asked of the layers that pruning leaves with few visual tokens, while they have them all. The strongest
    look of any token of an answer counts, so that a long answer's every object does.
    """
    hidden, seen = reading.hidden, None
    for layer in base.middle:
        found = looks(layer, hidden, reading, reading.target_at)
        seen = found if seen is None else [a + b for a, b in zip(seen, found, strict=True)]
        hidden = layer(hidden, **reading.inputs)
    turns = [reading.turn[reading.target_at // hidden.shape[1] == b] for b in range(len(hidden))]
    return [
        _strongest(look[:, visual], turn - turn[:1])
        for look, visual, turn in zip(seen or [], reading.visual, turns, strict=True)
    ]


def _strongest(look: Tensor, turn: Tensor) -> Tensor:
    """[A, V], [A] from 0 -> [turns, V]"""
    if not len(turn):
        return look
    most = look.new_zeros(int(turn[-1]) + 1, look.shape[1])
    most = most.scatter_reduce(0, turn[:, None].expand_as(look), look, "amax")
    return most / most.sum(-1, keepdim=True).clamp_min(1e-12)


def foresight_loss(ranks: Sequence[Tensor], target: Sequence[Tensor], reading: Reading) -> Tensor:
    """KL of the last prompt tokens' looks [turns, N] from `target` [turns, V], over visual tokens alone."""
    total, turns = reading.hidden.new_zeros((), dtype=torch.float32), 0
    for rank, wanted, visual in zip(ranks, target, reading.visual, strict=True):
        if not (visual.any() and len(rank)):
            continue
        seen = rank[:, visual]
        seen = (seen / seen.sum(-1, keepdim=True)).clamp_min(1e-12)
        total = total + F.kl_div(seen.log(), wanted, reduction="sum")
        turns += len(rank)
    return total / max(turns, 1)


@torch.no_grad()
def base_distribution(base: FrozenBase, reading: Reading, ranks: Sequence[Tensor], share: float) -> Tensor:
    """[A, vocabulary]: what the base says next where it is pruned to R-bar = share * M.

    One choice of visual tokens a sequence, by what all its last prompt tokens look at together. Rows that
    are dropped are not computed, and sequences are taken one by one, so that each has its own.
    """
    said = []
    rows = list(reading.split(reading.target_at))
    for b, (hidden, visual, rank) in enumerate(zip(reading.hidden, reading.visual, ranks, strict=True)):
        if not len(rows[b]):
            continue
        text = ~visual
        text[rows[b]] = True  # a prompt may end in its picture
        kept, top = text, text
        if share == 1.0 or not visual.any():
            kept = top = torch.ones_like(visual)
        else:
            kept = text | _chosen(rank, visual, base, share)
        said.append(base.logits(_pruned(base, reading, b, hidden, kept, top)[rows[b]]))
    return torch.cat(said).float().softmax(-1)


def _chosen(rank: Tensor, visual: Tensor, base: FrozenBase, share: float) -> Tensor:
    """bool [N]: the R' visual tokens of the highest rank."""
    tokens = int(visual.sum())
    count = pruned_tokens(round(share * tokens), base.depth, tokens, base.fork_layer, base.drop_layer)
    mean = rank.mean(0).masked_fill(~visual, -1.0)
    best = mean.topk(min(max(count, 0), tokens)).indices
    return torch.zeros_like(visual).index_fill(0, best, True)


def _pruned(base: FrozenBase, reading: Reading, b: int, hidden: Tensor, kept: Tensor, top: Tensor) -> Tensor:
    """[N, hidden] behind the last layer, dropped rows zero; kept, top: bool [N], who K.. and F.. see."""
    rows = torch.nonzero(kept).flatten()
    x = through(base.middle, hidden[None, rows], _inputs(reading, b, rows))
    last = torch.nonzero(top).flatten()
    x = through(base.top, x[:, top[rows]], _inputs(reading, b, last))
    return torch.zeros_like(hidden).index_copy(0, last, x[0])


def _inputs(reading: Reading, b: int, rows: Tensor) -> dict[str, Any]:
    mask, (cos, sin) = reading.alone(b)
    return {
        "attention_mask": None if mask is None else mask[rows][:, rows][None, None],
        "position_embeddings": (cos[None, rows], sin[None, rows]),
    }
