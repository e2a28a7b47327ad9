"""A decoder of few layers to give lessons to, untrained."""

from __future__ import annotations

import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from model.train.base import new_base


def decoder(tokenizer: PreTrainedTokenizerFast, drop_layer: int) -> LlavaForConditionalGeneration:
    """Of the embedded model's shape, with one layer behind the drop layer."""
    torch.manual_seed(0)
    vlm = new_base(tokenizer)
    del vlm.model.language_model.layers[drop_layer + 1 :]
    return vlm
