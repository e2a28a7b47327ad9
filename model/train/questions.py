"""What questions are taught beside their answers: to know the answer early, and to fetch it.

An answer hangs on its first word, one token among hundreds whose loss drowns in the others'; so that word
counts a second time. And it hangs on two looks, from what the question names (a noun, a place) at the patches
(`matching`) and from where the answer is told at that word, of which neither is learned while the other is
missing (docs/log.md). So the word named is asked for what the answer tells, its first word and places, sizes,
colors, nouns, at the end and before the visual tokens are dropped; and one head of the layer behind is led
to look from before each of these at the word named.

A noun that the answer repeats is copied in the third layer, by the last head there: a noun's own state names
it in 0.97 of the cases behind the first layer and in 0.35 before the drop layer, where copying it was tried
first. So where it is to be repeated, it has to be known by the time that the visual tokens are dropped.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from model.scenes.words import COLOR_NAMES, PLACES, SIZES
from model.train.looks import LAST_HEAD, Looks
from model.train.matching import word_ids
from model.train.pack import Packed

EARLY_WEIGHT, FETCH_WEIGHT = 0.5, 0.5
COPY_LAYER = 2


def asked_and_told(tokenizer: PreTrainedTokenizerFast) -> tuple[tuple[Tensor, Tensor], ...]:
    """Token ids of what a question names and of what its answer tells of it."""

    def ids(words: Iterable[str]) -> Tensor:
        pieces = [tokenizer.encode(f" {word}", add_special_tokens=False) for word in words]
        return torch.tensor([piece[0] for piece in pieces if len(piece) == 1])

    nouns, places = word_ids(tokenizer).flatten(), ids({word for place in PLACES for word in place.split()})
    traits = ids((*SIZES, *COLOR_NAMES))
    return (nouns, torch.cat([nouns, places, traits])), (places, torch.cat([nouns, traits]))


class Questions:
    """drop_layer: F, where what comes before a told word is to have looked at the word named."""

    def __init__(self, looks: Looks, tokenizer: PreTrainedTokenizerFast, drop_layer: int) -> None:
        self.looks, self.vlm, self.drop_layer = looks, looks.vlm, drop_layer
        self.pairs = [[ids.to(looks.vlm.device) for ids in pair] for pair in asked_and_told(tokenizer)]

    @staticmethod
    def layers(drop_layer: int) -> tuple[int, ...]:
        """Whose inputs it needs."""
        return COPY_LAYER, drop_layer

    def loss(self, packed: Packed, hidden: Tensor, logits: Tensor) -> Tensor:
        """hidden [B * N, hidden], logits [A, V]: of the forward pass that was made last."""
        starts = packed.starts
        total = F.cross_entropy(logits[starts], packed.target[starts])
        found = [packed.asked(asked, told) for asked, told in self.pairs]
        said, answer = (torch.cat(parts) for parts in zip(*found, strict=True))
        if not len(said):
            return total
        nouns = self.pairs[0][0]
        repeated = torch.isin(packed.target[answer], nouns) & torch.isin(packed.ids.flatten()[said], nouns)
        named, told, last = said[~repeated], packed.target[answer], packed.target_at[answer]
        before = self.vlm.model.language_model.norm(self.looks.entering[self.drop_layer]).flatten(0, 1)
        for states in (hidden, before):
            total = total + EARLY_WEIGHT * self._names(states[named], told[~repeated])
        total = total + FETCH_WEIGHT * self._fetch(self.drop_layer, packed, said, last)
        if repeated.any():
            total = total + EARLY_WEIGHT * self._names(before[last[repeated]], told[repeated])
            total = total + FETCH_WEIGHT * self._fetch(COPY_LAYER, packed, said[repeated], last[repeated])
        return total

    def _names(self, states: Tensor, tokens: Tensor) -> Tensor:
        return F.cross_entropy(self.vlm.lm_head(states).float(), tokens)

    def _fetch(self, number: int, packed: Packed, said: Tensor, last: Tensor) -> Tensor:
        """From how well the last head of a layer looks from before each told word at the word named."""
        scores = self.looks.scores(number, LAST_HEAD, packed, last)[:, 0]
        return F.cross_entropy(scores, said % packed.ids.shape[1])
