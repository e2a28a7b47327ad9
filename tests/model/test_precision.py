"""Attention as batched products is transformers' own attention, in float32 to rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from model.device import CPU
from model.train import precision
from model.train.tower import TOWER_CONFIG


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with bfloat16, whatever this one has."""
    monkeypatch.setattr(precision, "native", lambda _device: True)


def test_of_a_tower() -> None:
    torch.manual_seed(0)
    tower = CLIPVisionModel(copy.deepcopy(TOWER_CONFIG)).eval()
    pixels = torch.randn(2, 3, TOWER_CONFIG.image_size, TOWER_CONFIG.image_size)
    with torch.no_grad():
        expected = tower(pixels).last_hidden_state
        precision.speed_up(tower)
        torch.testing.assert_close(tower(pixels).last_hidden_state, expected, atol=2e-5, rtol=1e-4)
    assert tower.config._attn_implementation == precision.NAME
    assert TOWER_CONFIG._attn_implementation != precision.NAME


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_of_decoder_layers_under_a_mask(kv_heads: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=kv_heads,
    )  # fmt: skip
    text = LlamaForCausalLM(config).eval().model
    states, places = torch.randn(2, 9, 64), torch.arange(9)[None]
    mask = torch.full((2, 1, 9, 9), torch.finfo(torch.float32).min).triu(1)
    mask[1, 0, 5:, 2] = torch.finfo(torch.float32).min
    rotary = text.rotary_emb(states, position_ids=places)

    def behind() -> torch.Tensor:
        hidden = states
        for layer in text.layers:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        return hidden

    with torch.no_grad():
        expected = behind()
        precision.speed_up(text)
        torch.testing.assert_close(behind(), expected, atol=2e-5, rtol=1e-4)
        with precision.autocast(CPU):
            torch.testing.assert_close(behind(), expected, atol=0.05, rtol=0.05)
