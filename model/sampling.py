"""Sampling without loss: logits to distributions, distributions to tokens, a twig's guess to the base's.

At each output position of a speculating row the twig's guess is drawn from q and accepted with probability
min(1, p/q); else the token is drawn from max(p - q, 0), normalised. p and q are the base's and the twig's
distributions after the same processors, so the token is distributed as p.
Invariant: this is done at *every* position with the position's own uniforms, also where no draft was
verified (after the last draft, and before `max_tokens`). So a token is a function of the tokens before it and
the seed alone: where rounds begin and end, what is in the batch and how long drafts are changes no text.
Knows nothing of layers, caches or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from model.randomness import Draw, Sampler, Uniforms

# Up to so many tokens are simply sorted; of more, so many of the best are looked at first.
SORTED_VOCABULARY = 4096
NUCLEUS_TOKENS = 256


def warp(logits: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """[n, vocabulary] float32, one sampler a row: transformers' order, temperature, top-k, top-p."""
    logits = logits / logits.new_tensor([sampler.temperature for sampler in samplers])[:, None]
    logits = _keep_top_k(logits, [sampler.top_k for sampler in samplers])
    return _keep_top_p(logits, [sampler.top_p for sampler in samplers])


def _keep_top_k(logits: Tensor, limits: Sequence[int]) -> Tensor:
    size = logits.shape[1]
    rows = [row for row, limit in enumerate(limits) if 0 < limit < size]
    if not rows:
        return logits
    index = torch.tensor(rows, device=logits.device)
    last = torch.tensor([limits[row] - 1 for row in rows], device=logits.device)[:, None]
    some = logits[index]
    lowest = some.topk(max(limits[row] for row in rows)).values.gather(1, last)
    return logits.index_copy(0, index, some.masked_fill(some < lowest, float("-inf")))


def _keep_top_p(logits: Tensor, shares: Sequence[float]) -> Tensor:
    rows = [row for row, share in enumerate(shares) if share < 1]
    if not rows:
        return logits
    index = torch.tensor(rows, device=logits.device)
    kept_share = torch.tensor([shares[row] for row in rows], dtype=torch.float64, device=logits.device)[
        :, None
    ]
    some = logits[index]
    removed = _outside_nucleus(some, kept_share)
    return logits.index_copy(0, index, some.masked_fill(removed, float("-inf")))


def _outside_nucleus(logits: Tensor, shares: Tensor) -> Tensor:
    """[n, vocabulary], float64 [n, 1] -> what top-p removes: what transformers finds by sorting.

    Sorting a large vocabulary costs more than a small model's layers. Where the best tokens hold the share
    they are all that need an order; each row decides for itself, so its neighbours change nothing.
    """
    if logits.shape[1] <= SORTED_VOCABULARY:
        return _outside_sorted(logits, shares)
    best, order = logits.topk(NUCLEUS_TOKENS)
    within = (best - logits.logsumexp(-1, keepdim=True)).exp_().double().cumsum(-1)
    # A token stays where the better ones do not hold the share yet; the best one always does.
    outside = F.pad(within[:, :-1] >= shares, (1, 0))
    removed = torch.ones_like(logits, dtype=torch.bool).scatter_(1, order, outside)
    flat = (within[:, -1:] < shares).nonzero()[:, 0]
    if len(flat):
        removed[flat] = _outside_sorted(logits[flat], shares[flat])
    return removed


def _outside_sorted(logits: Tensor, shares: Tensor) -> Tensor:
    ascending, order = logits.sort()
    removed = ascending.softmax(-1).cumsum(-1) <= (1 - shares).float()
    removed[:, -1] = False
    return removed.scatter(1, order, removed)


def distributions(logits: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    return warp(logits.float(), samplers).softmax(-1)


def pick(weights: Tensor, uniforms: Tensor) -> Tensor:
    """[n, vocabulary], float64 [n] -> [n]: a token with probability proportional to its weight."""
    sums = weights.cumsum(-1, dtype=torch.float64)
    points = (uniforms * sums[:, -1])[:, None]
    tokens = torch.searchsorted(sums, points, right=True)[:, 0]
    # Only weights that are no numbers lead past the end.
    return tokens.clamp_(max=weights.shape[1] - 1)


def settle(p: Tensor, q: Tensor, guesses: Tensor, accept: Tensor, resample: Tensor) -> Tensor:
    """[n, vocabulary] twice, [n] three times -> [n]: the guess, or a token of the residual instead.

    A resampled token is never the guess: where that is rejected q is above p, and the residual is zero.
    """
    at = guesses[:, None]
    # A twig whose logits are no numbers is believed in nothing.
    accepted = accept * q.gather(1, at)[:, 0] < p.gather(1, at)[:, 0]
    rejected = (~accepted).nonzero()[:, 0]
    if not len(rejected):
        return guesses
    p, q = p[rejected], q[rejected]
    residual = (p - q).clamp_(min=0)
    # p and q that differ by less than they are rounded may leave nothing.
    residual = torch.where(residual.sum(-1, keepdim=True) > 0, residual, p)
    return guesses.index_copy(0, rejected, pick(residual, resample[rejected]))


class Lottery:
    """The sampled rows of one round, from the twig's guesses to the tokens; greedy rows pass through.

    draws: one a slot, None where the row is greedy.
    """

    def __init__(self, draws: Sequence[Draw | None], device: torch.device) -> None:
        self._draws = {slot: draw for slot, draw in enumerate(draws) if draw is not None}
        self._device = device
        self._guesses: dict[int, list[int]] = {slot: [] for slot in self._draws}
        self._twig: list[tuple[int, Tensor]] = []  # (slot, q), step after step

    def guesses_at(self, slot: int) -> bool:
        """Whether the twig is asked for a guess after the row's last token, too."""
        draw = self._draws.get(slot)
        return draw is not None and draw.coupled

    def guess(self, logits: Tensor, slots: Sequence[int]) -> tuple[list[int], list[float]]:
        """The twig's logits [n, twig's vocabulary] -> a token a row, and its raw probability."""
        logits = logits.float()
        tokens = logits.argmax(-1)
        rows = [row for row, slot in enumerate(slots) if slot in self._draws]
        if rows:
            drawn = [slots[row] for row in rows]
            index = torch.tensor(rows, device=self._device)
            q = distributions(logits[index], [self._draws[slot].sampler for slot in drawn])
            chances = [self._draws[slot].uniforms(len(self._guesses[slot])).draft for slot in drawn]
            tokens[index] = pick(q, self._column(chances))
            self._twig += zip(drawn, q, strict=True)
            for slot, token in zip(drawn, tokens[index].tolist(), strict=True):
                self._guesses[slot].append(token)
        raw = (logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)).exp_()
        return tokens.tolist(), raw.tolist()

    def choose(self, logits: Tensor, widths: Sequence[int]) -> list[int]:
        """The base's logits [sum of widths, vocabulary], slot after slot -> the base's token for each row."""
        choices = logits.argmax(-1)
        starts = [0, *accumulate(widths)]
        for coupled in (False, True):
            slots = [slot for slot, draw in self._draws.items() if draw.coupled is coupled]
            if slots:
                rows = [row for slot in slots for row in range(starts[slot], starts[slot + 1])]
                index = torch.tensor(rows, device=self._device)
                draw = self._coupled if coupled else self._free
                choices[index] = draw(logits[index], slots, [widths[slot] for slot in slots])
        return choices.tolist()

    def _free(self, logits: Tensor, slots: Sequence[int], widths: Sequence[int]) -> Tensor:
        p = self._base(logits, slots, widths)
        return pick(p, self._column([chance.draft for chance in self._uniforms(slots, widths)]))

    def _coupled(self, logits: Tensor, slots: Sequence[int], widths: Sequence[int]) -> Tensor:
        p = self._base(logits, slots, widths)
        # The sort is stable: a slot's own stay in order of their steps.
        q = torch.stack([q for _, q in sorted(self._twig, key=lambda entry: entry[0])])
        # Ids that the twig's head lacks are never guessed.
        q = F.pad(q, (0, p.shape[1] - q.shape[1]))
        guesses = torch.tensor(
            [guess for slot in slots for guess in self._guesses[slot]], device=self._device
        )
        chances = self._uniforms(slots, widths)
        accept = self._column([chance.accept for chance in chances])
        return settle(p, q, guesses, accept, self._column([chance.resample for chance in chances]))

    def _base(self, logits: Tensor, slots: Sequence[int], widths: Sequence[int]) -> Tensor:
        samplers = [
            self._draws[slot].sampler for slot, n in zip(slots, widths, strict=True) for _ in range(n)
        ]
        return distributions(logits, samplers)

    def _uniforms(self, slots: Sequence[int], widths: Sequence[int]) -> list[Uniforms]:
        counted = zip(slots, widths, strict=True)
        return [self._draws[slot].uniforms(step) for slot, width in counted for step in range(width)]

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self._device)
