"""A training loss that leads a question to the patches it asks about.

Next-token loss alone left this base at chance on "Is there a dog?" after thousands of steps: nothing told it
that a question's word and a patch are to be matched. Here three heads are told. From the noun of a question
two look at the patches of what it names, or at the first token where the picture has none of it; from the
last prompt token, where the answer is decided, the third looks at the noun.
The scenes know their patches, so this goes for scenes alone; inference knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from model.scenes.compose import Scene, patches_of
from model.scenes.words import NOUNS, plural
from model.train.pack import Packed

# The twig's last layer starts as the first of these.
NOUN_LAYERS, ANSWER_LAYER, HEAD = (2, 3), 5, 0
ANSWER_WEIGHT = 0.3  # learned in fifty steps


@dataclass(frozen=True)
class Looks:
    """From token `at` [n] of row `row` [n] of a batch at the tokens `wanted` [n, N]."""

    row: torch.Tensor
    at: torch.Tensor
    wanted: torch.Tensor


class Grounding:
    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._noun_of: dict[int, str] = {}
        for noun in NOUNS:
            for word in (noun, plural(noun)):
                first = tokenizer.encode(" " + word, add_special_tokens=False)[0]
                self._noun_of[first] = noun

    def loss(
        self,
        vlm: LlavaForConditionalGeneration,
        inputs: dict[int, torch.Tensor],
        packed: Packed,
        scenes: Sequence[Scene],
    ) -> torch.Tensor:
        """inputs: the hidden states [B, N, hidden] that enter each layer."""
        found = self.looks(packed, scenes)
        if found is None:
            return torch.zeros(())
        nouns, answers = found
        loss = ANSWER_WEIGHT * _loss(vlm, ANSWER_LAYER, inputs[ANSWER_LAYER], packed, answers)
        for layer in NOUN_LAYERS:
            loss = loss + _loss(vlm, layer, inputs[layer], packed, nouns)
        return loss

    def looks(self, packed: Packed, scenes: Sequence[Scene]) -> tuple[Looks, Looks] | None:
        """From nouns at patches, and from answers' beginnings at nouns; None where no noun is asked for.

        Where all patches of what is named are left out there is nothing to learn.
        """
        batch, length = packed.ids.shape
        answered = torch.zeros(batch * length, dtype=torch.bool)
        answered[packed.target_at + 1] = True
        named = torch.isin(packed.ids, torch.tensor(list(self._noun_of))).flatten() & ~answered
        begins = packed.target_at[torch.cat([packed.turn.new_ones(1), packed.turn.diff()]) > 0]
        found = []
        for place in torch.nonzero(named).flatten().tolist():
            row, at = divmod(place, length)
            patches = self._patches(packed, row, scenes[row], self._noun_of[int(packed.ids[row, at])])
            if patches.any():
                begin = int(begins[torch.searchsorted(begins, place)]) - row * length
                found.append((row, at, begin, patches))
        if not found:
            return None
        rows, ats, firsts, patches_of_all = zip(*found, strict=True)
        row, at = torch.tensor(rows), torch.tensor(ats)
        nouns = torch.zeros(len(found), length, dtype=torch.bool)
        nouns[torch.arange(len(found)), at] = True
        return Looks(row, at, torch.stack(patches_of_all)), Looks(row, torch.tensor(firsts), nouns)

    def _patches(self, packed: Packed, row: int, scene: Scene, noun: str) -> torch.Tensor:
        things = [thing for thing in scene.objects if thing.noun == noun]
        wanted = torch.zeros(packed.ids.shape[1], dtype=torch.bool)
        if not things:
            wanted[0] = True
            return wanted
        shown = np.logical_or.reduce([patches_of(thing) for thing in things])
        wanted[packed.visual_at[row]] = torch.from_numpy(shown)[packed.visual_index[row]]
        return wanted


def _loss(
    vlm: LlavaForConditionalGeneration, layer: int, hidden: torch.Tensor, packed: Packed, looks: Looks
) -> torch.Tensor:
    """Minus the log of the head's attention that falls on what is wanted."""
    text = vlm.model.language_model
    decoder = text.layers[layer]
    attention = decoder.self_attn
    own = slice(HEAD * attention.head_dim, (HEAD + 1) * attention.head_dim)
    normed = decoder.input_layernorm(hidden)
    query, key = (
        (normed @ project.weight[own].T)[:, None] for project in (attention.q_proj, attention.k_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, *text.rotary_emb(hidden, position_ids=packed.positions))
    logits = (key[looks.row, 0] @ query[looks.row, 0, looks.at][:, :, None]).squeeze(-1) * attention.scaling
    shares = (logits + packed.mask[looks.row, 0, looks.at]).log_softmax(-1)
    return -shares.masked_fill(~looks.wanted, -torch.inf).logsumexp(-1).mean()
