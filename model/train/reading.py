"""One batch as a frozen base's layers read it, and the base cut where the twig grows and visual tokens end.

Invariant: nothing here has gradients; hidden states are those that leave base layer K-1.
Knows transformers' decoder layers (LLaMA's and those alike), not where text and pictures came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

LEAST = 1e-12  # of a look, where its logarithm is taken or it is divided by


@dataclass(frozen=True)
class Reading:
    """B sequences of N tokens, padded behind.

    hidden: [B, N, hidden]. mask: additive [B, 1, N, N], None where plain causality says enough.
    rotary: cos and sin, [B, N, head_dim] each. visual: bool [B, N].
    target_at: [A] ascending flat indices into [B * N] whose next token is an answer token; target: [A] that
    token. turn: [A] ascending number of the answer, over the batch, that it belongs to.
    grid: rows and columns of a sequence's visual tokens; None where they lie otherwise or sequences differ.
    """

    hidden: Tensor
    mask: Tensor | None
    rotary: tuple[Tensor, Tensor]
    visual: Tensor
    target_at: Tensor
    target: Tensor
    turn: Tensor
    grid: tuple[int, int] | None = None

    @property
    def inputs(self) -> dict[str, Any]:
        """What every layer is called with beside the hidden states."""
        return {"attention_mask": self.mask, "position_embeddings": self.rotary}

    @property
    def prompt_ends(self) -> Tensor:
        """[turns] flat indices of last prompt tokens: the first of each answer's rows."""
        first = torch.ones_like(self.turn, dtype=torch.bool)
        first[1:] = self.turn.diff() > 0
        return self.target_at[first]

    @property
    def turns(self) -> list[Tensor]:
        """For each sequence [its target rows]: which of its own answers each belongs to, from 0."""
        sequence = self.target_at // self.hidden.shape[1]
        own = [self.turn[sequence == b] for b in range(len(self.hidden))]
        return [turn - turn[:1] for turn in own]

    def alone(self, b: int) -> tuple[Tensor | None, tuple[Tensor, Tensor]]:
        """Mask [N, N] and rotary [N, head_dim] of one sequence."""
        cos, sin = self.rotary
        return None if self.mask is None else self.mask[b, 0], (cos[b], sin[b])

    def split(self, flat: Tensor) -> Iterator[Tensor]:
        """Ascending flat indices -> those of each sequence, counted from its first token."""
        length = self.hidden.shape[1]
        for b in range(len(self.hidden)):
            yield flat[flat // length == b] - b * length


class FrozenBase:
    """vlm: transformers' ...ForConditionalGeneration of a supported family; it loses its gradients."""

    def __init__(self, vlm: Any, fork_layer: int, drop_layer: int) -> None:
        vlm.requires_grad_(False)
        text = vlm.model.language_model
        layers = list(text.layers)
        if not 0 <= fork_layer < drop_layer <= len(layers):
            raise ValueError(
                f"fork_layer {fork_layer} must be below drop_layer {drop_layer}, and that at most "
                f"{len(layers)}, the base's layers"
            )
        self.fork_layer, self.drop_layer, self.depth = fork_layer, drop_layer, len(layers)
        self.trunk, self.middle, self.top = (
            layers[:fork_layer], layers[fork_layer:drop_layer], layers[drop_layer:],
        )  # fmt: skip
        self.norm, self.head, self.rotary = text.norm, vlm.lm_head, text.rotary_emb

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(self.norm(hidden))


def through(layers: Iterable[nn.Module], hidden: Tensor, inputs: dict[str, Any]) -> Tensor:
    for layer in layers:
        hidden = layer(hidden, **inputs)
    return hidden


def looks(layer: Any, hidden: Tensor, reading: Reading, rows: Tensor) -> list[Tensor]:
    """Attention probabilities of a layer over its input, mean over heads, of the given rows alone.

    rows: ascending flat indices. Returns for each sequence float32 [its rows, N].
    """
    attention, (cos, sin) = layer.self_attn, reading.rotary
    normed = layer.input_layernorm(hidden)
    query, key = (
        project(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, cos, sin)
    key = repeat_kv(key, attention.num_key_value_groups)
    return [
        _attention(query[b][:, own], key[b], attention.scaling, own, reading.alone(b)[0])
        for b, own in enumerate(reading.split(rows))
    ]


def _attention(query: Tensor, key: Tensor, scaling: float, rows: Tensor, mask: Tensor | None) -> Tensor:
    """query: [heads, rows, head_dim]; key: [heads, N, head_dim] -> [rows, N]"""
    logits = (query @ key.transpose(1, 2)).float() * scaling
    if mask is None:
        later = torch.arange(key.shape[1], device=key.device) > rows[:, None]
        logits = logits.masked_fill(later, float("-inf"))
    else:
        logits = logits + mask[rows]
    return logits.softmax(-1).mean(0)
