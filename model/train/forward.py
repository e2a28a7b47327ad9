"""The decoder over packed sequences, as training runs it."""

from __future__ import annotations

import torch
from transformers import LlavaForConditionalGeneration

from model.train.pack import Packed


def embed_packed(vlm: LlavaForConditionalGeneration, packed: Packed, visual: torch.Tensor) -> torch.Tensor:
    """What the first layer is given [B, N, hidden]; `visual` [B, V, tower hidden] is not projected yet."""
    rows = torch.arange(len(packed.ids), device=packed.ids.device)[:, None]
    words = vlm.model.language_model.embed_tokens(packed.ids)
    projected = vlm.model.multi_modal_projector(visual).to(words.dtype)  # bfloat16 under autocast
    shown: torch.Tensor = words.index_put((rows, packed.visual_at), projected)
    return shown


def forward_packed(
    vlm: LlavaForConditionalGeneration, packed: Packed, visual: torch.Tensor, drop_layer: int | None = None
) -> torch.Tensor:
    """Last hidden states [B, N, hidden]; `visual` [B, V, tower hidden] is not projected yet.

    From `drop_layer` on the visual tokens are gone; their rows of the result are what they were by then.
    """
    text = vlm.model.language_model
    hidden = embed_packed(vlm, packed, visual)
    shown, mask, positions = None, packed.mask, packed.positions
    first, count = int(packed.visual_at[0, 0]), packed.visual_at.shape[1]
    for number, layer in enumerate(text.layers):
        if number == drop_layer:
            is_text = torch.ones(hidden.shape[1], dtype=torch.bool, device=hidden.device)
            is_text[first : first + count] = False
            shown, hidden = hidden[:, ~is_text], hidden[:, is_text]
            mask, positions = mask[:, :, is_text][..., is_text], positions[:, is_text]
        if number in (0, drop_layer):
            rotary = text.rotary_emb(hidden, position_ids=positions)
        hidden = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
    if shown is not None:
        hidden = torch.cat([hidden[:, :first], shown, hidden[:, first:]], 1)
    return text.norm(hidden)
