"""What questions are taught: the head that copies learns to look at the noun that the answer repeats."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from model.scenes.language import Turn
from model.train.batches import IMAGE_TOKENS
from model.train.forward import forward_packed
from model.train.looks import Looks
from model.train.pack import Packed, Packer
from model.train.questions import COPY_LAYER, Questions
from model.train.tower import TOWER_CONFIG
from tests.model.lessons import decoder

DROP = 4  # of a decoder of few layers
REPEATS = Turn("exists", "Is there a dog?", "Yes, there is a dog.")


def asked(tokenizer: PreTrainedTokenizerFast, turn: Turn) -> tuple[Packed, torch.Tensor]:
    kept = [np.arange(0, IMAGE_TOKENS, 36)]
    visual = torch.randn(
        1, len(kept[0]), TOWER_CONFIG.hidden_size, generator=torch.Generator().manual_seed(1)
    )
    return Packer(tokenizer, IMAGE_TOKENS).pack([[turn]], kept), visual


def lesson(
    vlm: LlavaForConditionalGeneration, questions: Questions, packed: Packed, visual: torch.Tensor
) -> torch.Tensor:
    hidden = forward_packed(vlm, packed, visual, DROP).flatten(0, 1)
    return questions.loss(packed, hidden, vlm.lm_head(hidden[packed.target_at]))


def test_a_repeated_noun_is_looked_at_early(tokenizer: PreTrainedTokenizerFast) -> None:
    """At the drop layer alone it was known to a third (docs/log.md)."""
    vlm = decoder(tokenizer, DROP)
    looks = Looks(vlm, Questions.layers(DROP))
    questions, (packed, visual) = Questions(looks, tokenizer, DROP), asked(tokenizer, REPEATS)
    dog = int(packed.named(questions.pairs[0][0]).nonzero())
    before = packed.target_at[packed.target == packed.ids.flatten()[dog]]
    layer = vlm.model.language_model.layers[COPY_LAYER]
    optimizer = torch.optim.Adam([layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight], 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        lesson(vlm, questions, packed, visual).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    seen: list[torch.Tensor] = []
    vlm.set_attn_implementation("eager")
    layer.self_attn.register_forward_hook(lambda _m, _i, out: seen.append(out[1]))
    with torch.no_grad():
        forward_packed(vlm, packed, visual, DROP)
    assert len(before) == 1
    assert seen[0][0, -1, before[0], dog] > 0.9
    assert seen[0][0, 0, before[0], dog] < 0.5
