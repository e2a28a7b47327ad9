"""A head that looks, before a noun is told, at what it is going to name.

A description has to find, among all that the picture shows, what comes next in its own order; a list says
each noun once. Taught by their words alone, lists said a noun again that had been said, and left others out
(docs/log.md). So before each noun that is told and was not asked about, the last head of one layer is led to
look at the visible patches which show it, and the noun has to be known before the visual tokens are dropped.
So have, in the last phases, the words that stand before a noun and hang on it: "an", "two", "small". There
the loss at the end counts them too: what the base knew before the drop layer, its last layers said "a" over.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from model.scenes.compose import SIZE_PX, Scene
from model.scenes.words import NUMBERS
from model.train.looks import LAST_HEAD, Looks, columns_showing, log_share
from model.train.matching import noun_of_tokens
from model.train.pack import Packed
from model.train.questions import EARLY_WEIGHT

NAMING_LAYER = 8
# What a noun decides that stands before it.
LEADING = ("a", "an", *NUMBERS, *SIZE_PX)
LEADING_WEIGHT = 1.0


class Naming:
    """drop_layer: F, before which a noun has to be known."""

    def __init__(self, looks: Looks, tokenizer: PreTrainedTokenizerFast, drop_layer: int) -> None:
        self.looks, self.vlm, self.drop_layer = looks, looks.vlm, drop_layer
        self.noun_of = noun_of_tokens(tokenizer)
        self.nouns = torch.tensor(list(self.noun_of), device=looks.vlm.device)
        said = (f" {form}" for word in LEADING for form in (word, word.capitalize()))
        pieces = tokenizer(list(said), add_special_tokens=False).input_ids
        self.leading = frozenset(token for piece in pieces for token in piece)

    @staticmethod
    def layers(drop_layer: int) -> tuple[int, ...]:
        """Whose inputs it needs."""
        return NAMING_LAYER, drop_layer

    def loss(
        self, packed: Packed, scenes: Sequence[Scene], hidden: Tensor, *, leading: bool = False
    ) -> Tensor:
        """scenes [B]: that the rows of the batch show. hidden [B * N, hidden]: of the forward pass made last.

        leading: of what stands before a noun and hangs on it as well, each such word counted by itself.
        """
        at, wanted = self._truth(packed, scenes, self.leading if leading else frozenset())
        if not len(at):
            return self.vlm.lm_head.weight.new_zeros(())
        scores = self.looks.scores(NAMING_LAYER, LAST_HEAD, packed, at)[:, 0]
        before = self.vlm.model.language_model.norm(self.looks.entering[self.drop_layer]).flatten(0, 1)
        told = packed.ids.flatten()[at + 1]
        share = self._share(told)
        total = -log_share(scores, wanted).mean()
        weight, told_by = (LEADING_WEIGHT, (before, hidden)) if leading else (EARLY_WEIGHT, (before,))
        for states in told_by:
            each = F.cross_entropy(self.vlm.lm_head(states[at]).float(), told, reduction="none")
            total = total + weight * (share * each).sum()
        return total

    def _share(self, told: Tensor) -> Tensor:
        """[n] tokens: what each weighs, [n] of sum 1. Nouns are one kind, each word that leads to one is a
        kind of its own, and a kind weighs the root of its number: "an" is a tenth of all articles."""
        kind = torch.where(torch.isin(told, self.nouns), self.nouns[0], told)
        _, which, count = kind.unique(return_inverse=True, return_counts=True)
        weight = count.float().rsqrt()[which]
        return weight / weight.sum()

    def _truth(
        self, packed: Packed, scenes: Sequence[Scene], leading: frozenset[int]
    ) -> tuple[Tensor, Tensor]:
        """Flat indices [n] of what comes before a noun that the question does not name and the picture shows,
        and before the tokens `leading` to it; bool [n, N] the columns that show it."""
        asked, shown, length = self._asked(packed), columns_showing(packed, scenes), packed.ids.shape[1]
        told = zip(*(t.tolist() for t in (packed.target_at, packed.target, packed.turn)), strict=True)
        at: list[int] = []
        wanted: list[Tensor] = []
        waiting: list[int] = []
        for place, token, turn in told:
            waiting.append(place)
            if token in leading:
                continue
            noun = self.noun_of.get(token)
            columns = [c for thing, c in shown[place // length] if thing.noun == noun and len(c)]
            if columns and (turn, noun) not in asked:
                at += waiting
                wanted += [torch.cat(columns)] * len(waiting)
            waiting = []
        mask = torch.zeros(len(at), length, dtype=torch.bool)
        for row, those in zip(mask, wanted, strict=True):
            row[those] = True
        return torch.tensor(at, dtype=torch.long, device=packed.ids.device), mask.to(packed.ids.device)

    def _asked(self, packed: Packed) -> set[tuple[int, str]]:
        """The nouns that each turn's question names."""
        said = torch.nonzero(packed.named(self.nouns)).flatten()
        turns = packed.turn[torch.searchsorted(packed.target_at, said)].tolist()
        tokens = packed.ids.flatten()[said].tolist()
        return {(turn, self.noun_of[token]) for turn, token in zip(turns, tokens, strict=True)}
