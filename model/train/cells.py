"""Nine heads that look for a noun, one for each place, so that several objects of a noun are told apart.

One head that looks at all patches which show a noun (`matching`) brings along a mixture of what stands there,
and a mixture of four places hardly tells them: nearly all wrong answers to "How many foxes are there?" and
"Where are the foxes?" were of nouns that were there more than once (docs/log.md). So each of nine heads is
led to look, from every noun that is said, at the patches of such an object in its own place, and at the first
token where there is none. What all nine found is asked for at the noun before the visual tokens are dropped,
and behind the drop layer where the answer is told.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from model.scenes.compose import Scene
from model.scenes.words import PLACES
from model.train.looks import Looks, behind_drop, columns_showing, log_share
from model.train.matching import noun_of_tokens
from model.train.pack import Packed
from model.train.questions import asked_and_told

CELL_LAYERS = (3, 4, 5)
HEADS_EACH = len(PLACES) // len(CELL_LAYERS)  # the first ones of each layer
LOOK_WEIGHT, TOLD_WEIGHT = 2.0, 1.0
# Of the logits that a place is taken: along its direction, and below what it is not.
LOUD, QUIET = 2.0, 3.0


class Cells:
    """drop_layer: F, before and behind which the places are asked for."""

    def __init__(self, looks: Looks, tokenizer: PreTrainedTokenizerFast, drop_layer: int) -> None:
        self.looks, self.vlm, self.drop_layer = looks, looks.vlm, drop_layer
        self.noun_of = noun_of_tokens(tokenizer)
        self.nouns, self.told = (part.to(looks.vlm.device) for part in asked_and_told(tokenizer)[0])
        hidden = looks.vlm.config.text_config.hidden_size
        directions = torch.randn(len(PLACES), hidden, generator=torch.Generator().manual_seed(6))
        self.directions = F.normalize(directions, dim=-1).to(looks.vlm.device)

    @staticmethod
    def layers(drop_layer: int) -> tuple[int, ...]:
        """Whose inputs it needs."""
        return (*CELL_LAYERS, drop_layer, drop_layer + 1)

    def loss(self, packed: Packed, scenes: Sequence[Scene]) -> Tensor:
        """scenes [B]: that the rows of the batch show. Of the forward pass that was made last."""
        said = torch.nonzero(packed.says(self.nouns)).flatten()
        if not len(said):
            return self.directions.new_zeros(())
        taken, wanted = self._truth(packed, scenes, said)
        entering = self.looks.entering
        told = self._places(entering[self.drop_layer].flatten(0, 1)[said], taken)
        asked, answer = packed.asked(self.nouns, self.told)
        if len(asked):
            states = behind_drop(packed, entering[self.drop_layer + 1], packed.target_at[answer])
            told = told + self._places(states, taken[torch.searchsorted(said, asked)])
        return LOOK_WEIGHT * self._look(packed, said, wanted) + TOLD_WEIGHT * told

    def _truth(self, packed: Packed, scenes: Sequence[Scene], said: Tensor) -> tuple[Tensor, Tensor]:
        """Which places hold an object of each noun [n, 9], and the columns that each place's head should look
        at, bool [n, 9, N]: the object's visible patches, or the first token."""
        length, ids = packed.ids.shape[1], packed.ids.flatten()[said].tolist()
        taken = torch.zeros(len(said), len(PLACES))
        wanted = torch.zeros(len(said), len(PLACES), length, dtype=torch.bool)
        shown = columns_showing(packed, scenes)
        for n, (row, token) in enumerate(zip((said // length).tolist(), ids, strict=True)):
            for thing, columns in shown[row]:
                if thing.noun == self.noun_of[token]:
                    place = PLACES.index(thing.place)
                    taken[n, place] = 1
                    wanted[n, place, columns] = True
        wanted[:, :, 0] = ~wanted.any(-1)
        return taken.to(said.device), wanted.to(said.device)

    def _look(self, packed: Packed, said: Tensor, wanted: Tensor) -> Tensor:
        heads = slice(0, HEADS_EACH)
        scores = torch.cat([self.looks.scores(number, heads, packed, said) for number in CELL_LAYERS], 1)
        right = log_share(scores, wanted)
        nothing = wanted[:, :, 0]
        there = right[~nothing].mean() if not nothing.all() else 0.0
        return -(there + right[nothing].mean()) / 2

    def _places(self, states: Tensor, taken: Tensor) -> Tensor:
        logits = LOUD * self.vlm.model.language_model.norm(states).float() @ self.directions.T - QUIET
        return F.binary_cross_entropy_with_logits(logits, taken, reduction="none").sum(-1).mean()
