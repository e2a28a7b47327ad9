"""How the embedded model's training multiplies on this machine: in bfloat16 where the processor has products
of it, with attention as two batched products.

torch's fused attention for CPUs takes four times as long as these there (docs/log.md), and nothing is gained
where bfloat16 is emulated: weights and products stay float32 then, and attention torch's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.models.llama.modeling_llama import repeat_kv

from model.dtypes import emulated

NAME = "batched_products"


def native(device: torch.device) -> bool:
    return not emulated(torch.bfloat16, device)


def autocast(device: torch.device) -> torch.autocast:
    """For a step's forward pass; losses of logits are to be taken in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=native(device))


def speed_up(network: PreTrainedModel) -> None:
    """Its attention on a CPU, in place, from now on; a mask that is None hides nothing."""
    if network.device.type == "cpu" and native(network.device):
        AttentionInterface.register(NAME, attend)
        network.set_attn_implementation(NAME)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query [B, heads, N, head_dim], key and value [B, kv heads, N, head_dim], mask additive [B, 1, N, N]
    -> [B, N, heads, head_dim]; transformers' signature of an attention function."""
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = (query * scaling) @ key.mT
    if attention_mask is not None:
        scores = scores + attention_mask
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None
