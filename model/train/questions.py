"""What questions are taught beside their answers: to know the answer early, and to fetch it.

An answer hangs on its first word, one token among hundreds whose loss drowns in the others'; so that word
counts a second time. And it hangs on two looks, from the question's noun at the patches (`matching`) and
from the last prompt token at the noun, of which neither is learned while the other is missing (docs/log.md).
So the noun is asked for the first word itself, at the end and before the visual tokens are dropped; and one
head of the layer behind is led to look from the last prompt token at the noun.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from model.train.pack import Packed

EARLY_WEIGHT, FETCH_WEIGHT = 0.5, 0.5


class Questions:
    """words: ids of what is asked for. drop_layer: F, where the last prompt token is to have looked at it."""

    def __init__(self, vlm: LlavaForConditionalGeneration, words: Tensor, drop_layer: int) -> None:
        self.vlm, self.words = vlm, words
        self.layer = vlm.model.language_model.layers[drop_layer]
        self._states = torch.empty(0)
        vlm.model.language_model.layers[drop_layer - 1].register_forward_hook(self._keep)

    def _keep(self, _layer: nn.Module, _inputs: object, states: Tensor) -> None:
        self._states = states

    def loss(self, packed: Packed, hidden: Tensor, logits: Tensor) -> Tensor:
        """hidden [B * N, hidden], logits [A, V]: of the forward pass that was made last."""
        starts = packed.starts
        total = F.cross_entropy(logits[starts], packed.target[starts])
        said, answer = packed.asked(self.words)
        if not len(said):
            return total
        before = self.vlm.model.language_model.norm(self._states).flatten(0, 1)
        for states in (hidden, before):
            told = self.vlm.lm_head(states[said])
            total = total + EARLY_WEIGHT * F.cross_entropy(told, packed.target[answer])
        return total + FETCH_WEIGHT * self._fetch(packed, said, packed.target_at[answer])

    def _fetch(self, packed: Packed, said: Tensor, last: Tensor) -> Tensor:
        """From how well the last head of `layer` looks from each last prompt token at the noun."""
        attention, length = self.layer.self_attn, self._states.shape[1]
        normed = self.layer.input_layernorm(self._states)
        rotary = self.vlm.model.language_model.rotary_emb(normed, position_ids=packed.positions)
        size = attention.head_dim
        asks, keys = (
            projection(normed)[:, None, :, -size:] for projection in (attention.q_proj, attention.k_proj)
        )
        asks, keys = (states[:, 0] for states in apply_rotary_pos_emb(asks, keys, *rotary))
        row = last // length
        scores = (asks.flatten(0, 1)[last][:, None] @ keys[row].mT)[:, 0] * attention.scaling
        return F.cross_entropy(scores + packed.mask[row, 0, last % length], said % length)
