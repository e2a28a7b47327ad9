"""Starts what the head that fetches (`questions`) carries from the word named to where the answer is told.

It looks where it should after some hundred steps (0.9997 of its softmax), but what it carried was not heard
(`carrying` says why). So least squares of what is to be told of a noun become some of its values, and words
as the output head reads them its output.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from model.scenes.language import QUESTIONS
from model.scenes.words import NOUNS
from model.train.batches import random_visual_tokens
from model.train.carrying import TOLD, directions, fit, put, what_is_told
from model.train.features import FeaturePool
from model.train.forward import forward_packed
from model.train.matching import word_ids
from model.train.pack import Packer

SCENES, QUESTIONS_EACH, VISUAL = 1500, 6, 128
LOUD = 0.15  # of a word told for certain, in lengths of the states it is written to


@torch.no_grad()
def install(
    vlm: LlavaForConditionalGeneration, pool: FeaturePool, tokenizer: PreTrainedTokenizerFast, layer: int
) -> None:
    """Into the first values of the last head of `layer`; what these did before is lost."""
    words = directions(vlm, tokenizer)[: len(TOLD)]
    states, told, length = lessons(vlm, pool, tokenizer, layer)
    put(vlm, layer, fit(states, told), LOUD * length * words)


def lessons(
    vlm: LlavaForConditionalGeneration, pool: FeaturePool, tokenizer: PreTrainedTokenizerFast, layer: int
) -> tuple[Tensor, Tensor, float]:
    """Normed states of nouns named [n, hidden], what is to be told of each [n, TOLD], and how long the states
    are that it is told from."""
    packer, ids = Packer(tokenizer, VISUAL), word_ids(tokenizer)
    seen: list[Tensor] = []
    hook = vlm.model.language_model.layers[layer].register_forward_hook(
        lambda _layer, inputs, _out: seen.append(inputs[0])
    )
    states, told, lengths = [], [], []
    for number, scene in enumerate(pool.scenes[:SCENES]):
        rng = np.random.default_rng([number, 10])
        kept = [random_visual_tokens(scene, rng, VISUAL)]
        turns = [QUESTIONS[rng.integers(len(QUESTIONS))](scene, rng) for _ in range(QUESTIONS_EACH)]
        packed = packer.pack([turns], kept)
        forward_packed(vlm, packed, pool.visual(np.array([number]), kept))
        before = seen.pop()[0]
        named = packed.named(ids)
        states.append(vlm.model.language_model.layers[layer].input_layernorm(before[named]))
        lengths.append(before[packed.target_at].norm(dim=-1).mean())
        for token in packed.ids[0, named]:
            noun = int((ids == token).any(0).nonzero())
            told.append(what_is_told(scene, NOUNS[noun])[: len(TOLD)])
    hook.remove()
    return torch.cat(states), torch.stack(told), torch.stack(lengths).mean().item()
