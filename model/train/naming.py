"""A head that looks, before a noun is told, at what it is going to name.

A description has to find, among all that the picture shows, what comes next in its own order; a list says
each noun once. Taught by their words alone, lists said a noun again that had been said, and left others out
(docs/log.md). So before each noun that is told and was not asked about, the last head of one layer is led to
look at the visible patches which show it, and the noun has to be known before the visual tokens are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from model.scenes.compose import Scene
from model.train.looks import LAST_HEAD, Looks, columns_showing, log_share
from model.train.matching import noun_of_tokens
from model.train.pack import Packed
from model.train.questions import EARLY_WEIGHT

NAMING_LAYER = 8


class Naming:
    """drop_layer: F, before which a noun has to be known."""

    def __init__(self, looks: Looks, tokenizer: PreTrainedTokenizerFast, drop_layer: int) -> None:
        self.looks, self.vlm, self.drop_layer = looks, looks.vlm, drop_layer
        self.noun_of = noun_of_tokens(tokenizer)
        self.nouns = torch.tensor(list(self.noun_of), device=looks.vlm.device)

    @staticmethod
    def layers(drop_layer: int) -> tuple[int, ...]:
        """Whose inputs it needs."""
        return NAMING_LAYER, drop_layer

    def loss(self, packed: Packed, scenes: Sequence[Scene]) -> Tensor:
        """scenes [B]: that the rows of the batch show. Of the forward pass that was made last."""
        at, wanted = self._truth(packed, scenes)
        if not len(at):
            return self.vlm.lm_head.weight.new_zeros(())
        scores = self.looks.scores(NAMING_LAYER, LAST_HEAD, packed, at)[:, 0]
        before = self.vlm.model.language_model.norm(self.looks.entering[self.drop_layer]).flatten(0, 1)
        told = packed.ids.flatten()[at + 1]
        return (
            EARLY_WEIGHT * F.cross_entropy(self.vlm.lm_head(before[at]).float(), told)
            - log_share(scores, wanted).mean()
        )

    def _truth(self, packed: Packed, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
        """Flat indices [n] of what comes before a noun that the question does not name and the picture shows,
        and bool [n, N] the columns that show it."""
        told = torch.isin(packed.target, self.nouns)
        at, asked, shown = packed.target_at[told], self._asked(packed), columns_showing(packed, scenes)
        wanted = torch.zeros(len(at), packed.ids.shape[1], dtype=torch.bool)
        rows = (at // packed.ids.shape[1]).tolist()
        answers = zip(rows, packed.turn[told].tolist(), packed.target[told].tolist(), strict=True)
        for n, (row, turn, token) in enumerate(answers):
            noun = self.noun_of[token]
            for thing, columns in shown[row]:
                if thing.noun == noun and (turn, noun) not in asked:
                    wanted[n, columns] = True
        wanted = wanted.to(at.device)
        there = wanted.any(-1)
        return at[there], wanted[there]

    def _asked(self, packed: Packed) -> set[tuple[int, str]]:
        """The nouns that each turn's question names."""
        said = torch.nonzero(packed.named(self.nouns)).flatten()
        turns = packed.turn[torch.searchsorted(packed.target_at, said)].tolist()
        tokens = packed.ids.flatten()[said].tolist()
        return {(turn, self.noun_of[token]) for turn, token in zip(turns, tokens, strict=True)}
