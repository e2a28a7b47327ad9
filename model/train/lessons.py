"""What a twig is taught: the next token, where to look, and what pruning costs.

The next token is the reference text's (the paper), or the base's own distribution under pruning, which is
what decides whether a draft is accepted. Where to look is `foresight`: the attention of the twig's last layer
at the last prompt token, which ranks the visual tokens, is led to where the base will look while it gives the
whole answer. Next-token loss alone asks of that token only what the first word needs. What pruning costs is
`under_pruning`: how far the base strays from its own words when the ranks decide what it sees. None needs
labels, so all go for any base and any data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from model.train.reading import LEAST, FrozenBase, Reading, looks
from model.train.under_pruning import base_distribution, pruning_loss

Draft = Literal["text", "base"]
# Of the look that is to be learned: means over three by three neighbours, one after the other, and a power,
# since who is in the first ranks counts and not the order of the others. At last stripes, of so many nats:
# neighbours tell much the same, so with every sixth of a row the same ranks reach six times as many objects.
SMOOTHINGS, FOCUS, STRIPES = 2, 4.0, 3.0
# Budgets that the base is asked under, as shares of M: the tiers of a request.
SHARES = (1 / 9, 2 / 9, 1 / 3, 1.0)


@dataclass(frozen=True)
class Lessons:
    """draft: whose next token is learned. foresight_weight, pruning_weight: 0 for none.

    foresight_steps: it is taught every so many steps; the base's look at a batch costs three times the
    twig's own step.
    """

    draft: Draft = "text"
    foresight_weight: float = 0.6
    foresight_steps: int = 3
    pruning_weight: float = 0.0

    def looks_ahead(self, step: int) -> bool:
        return self.foresight_weight > 0 and step % self.foresight_steps == 0


def twig_loss(
    twig: Any, base: FrozenBase, reading: Reading, lessons: Lessons, step: int, share: float
) -> tuple[Tensor, Tensor]:
    """The loss, a mean over the answer tokens, and the twig's logits there [A, vocabulary].

    twig: `model.train.twig_module.Twig`, or what wraps it. share: of M, where the base is asked.
    """
    visual = bool(reading.visual.any())
    ahead = lessons.looks_ahead(step) and visual
    pruned = lessons.pruning_weight > 0 and visual and share < 1.0  # without pruning there is nothing to rank
    logits, ranks = twig(reading, ahead or pruned or lessons.draft == "base")
    if not len(reading.target):  # no answer is left of what was cut
        return logits.sum() * 0, logits
    if lessons.draft == "base":
        taught = base_distribution(base, reading, ranks, share)
        loss = F.kl_div(logits.float().log_softmax(-1), taught, reduction="batchmean")
    else:
        loss = F.cross_entropy(logits.float(), reading.target)
    if ahead:
        loss = loss + lessons.foresight_weight * foresight_loss(ranks, foresight(base, reading), reading)
    if pruned:
        draws = torch.Generator().manual_seed(step)
        loss = loss + lessons.pruning_weight * pruning_loss(base, reading, ranks, share, draws)
    return loss, logits


@torch.no_grad()
def foresight(base: FrozenBase, reading: Reading) -> list[Tensor]:
    """Where each answer's tokens look, for each sequence [its turns, V], sum 1.

    Asked of the layers that pruning leaves with few visual tokens, while they have them all. Each token's
    look, a sum over layers of shares of the picture, counts by its own peak, and of an answer's tokens the
    strongest: so every object of a long answer is among the first ranks, also one that is looked at in many
    places. Smoothed where the grid is known: which of an object's tokens it will be is not to be foreseen,
    and mattered little. So there it is decided beforehand, by stripes: otherwise the ranks of a few objects'
    neighbours come before any of another's.
    """
    hidden, shares = reading.hidden, None
    for layer in base.middle:
        found = looks(layer, hidden, reading, reading.target_at)
        found = [_shares(look[:, visual]) for look, visual in zip(found, reading.visual, strict=True)]
        shares = found if shares is None else [a + b for a, b in zip(shares, found, strict=True)]
        hidden = layer(hidden, **reading.inputs)
    return [
        _shares(_striped(_strongest(_heights(share, reading.grid), turn) ** FOCUS, reading.grid))
        for share, turn in zip(shares or [], reading.turns, strict=True)
    ]


def _shares(look: Tensor) -> Tensor:
    return look / look.sum(-1, keepdim=True).clamp_min(LEAST)


def _heights(look: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """[A, V] -> [A, V], each row by its peak."""
    if not look.numel():
        return look
    if (sides := _filled(look, grid)) is not None:
        image = look.view(-1, 1, *sides)
        for _ in range(SMOOTHINGS):
            image = F.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
        look = image.flatten(1)
    return look / look.amax(-1, keepdim=True).clamp_min(LEAST)


def _striped(look: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """[turns, V]. A radian a token is what the first rotary pair of a head turns by, so a head can rank so;
    from row to row the stripes move on, by the columns modulo a turn."""
    if _filled(look, grid) is None:
        return look
    angle = torch.arange(look.shape[-1], device=look.device, dtype=look.dtype)
    return look * torch.exp(STRIPES * (angle.cos() - 1))


def _filled(look: Tensor, grid: tuple[int, int] | None) -> tuple[int, int] | None:
    """The grid, if the looks [n, V] have all of it."""
    return grid if grid is not None and look.shape[-1] == grid[0] * grid[1] else None


def _strongest(look: Tensor, turn: Tensor) -> Tensor:
    """[A, V], [A] from 0 -> [turns, V]"""
    if not len(turn):
        return look
    most = look.new_zeros(int(turn[-1]) + 1, look.shape[1])
    return most.scatter_reduce(0, turn[:, None].expand_as(look), look, "amax")


def foresight_loss(ranks: Sequence[Tensor], target: Sequence[Tensor], reading: Reading) -> Tensor:
    """KL of the last prompt tokens' looks [turns, N] from `target` [turns, V], over visual tokens alone."""
    total, turns = reading.hidden.new_zeros((), dtype=torch.float32), 0
    for rank, wanted, visual in zip(ranks, target, reading.visual, strict=True):
        if not (visual.any() and len(rank)):
            continue
        seen = _shares(rank[:, visual]).clamp_min(LEAST)
        total = total + F.kl_div(seen.log(), wanted, reduction="sum")
        turns += len(rank)
    return total / max(turns, 1)
