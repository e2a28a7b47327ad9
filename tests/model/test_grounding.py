"""Grounding: a question's noun is to look at its patches, the answer's beginning at the noun."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from model.scenes.compose import Scene, patches_of, random_scene
from model.scenes.language import Turn
from model.scenes.words import NOUNS
from model.train.base import new_base
from model.train.batches import IMAGE_TOKENS
from model.train.grounding import ANSWER_LAYER, ANSWER_WEIGHT, HEAD, NOUN_LAYERS, Grounding, Looks
from model.train.pack import Packed, Packer
from model.train.tokenizer import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="module")
def scene() -> Scene:
    return random_scene(np.random.default_rng(3))


def pack(tokenizer: PreTrainedTokenizerFast, scene: Scene, *turns: Turn) -> Packed:
    return Packer(tokenizer, IMAGE_TOKENS).pack([list(turns)], [np.arange(IMAGE_TOKENS)])


def exists(noun: str) -> Turn:
    return Turn("exists", f"Is there a {noun}?", f"Yes, there is a {noun}.")


def looks(tokenizer: PreTrainedTokenizerFast, scene: Scene, *turns: Turn) -> tuple[Packed, Looks, Looks]:
    packed = pack(tokenizer, scene, *turns)
    found = Grounding(tokenizer).looks(packed, [scene])
    assert found is not None
    return packed, *found


def test_a_noun_looks_at_its_patches_and_the_answer_at_the_noun(
    tokenizer: PreTrainedTokenizerFast, scene: Scene
) -> None:
    thing = scene.objects[0]
    packed, nouns, answers = looks(tokenizer, scene, exists(thing.noun), exists(scene.objects[-1].noun))
    ids = packed.ids[0]
    assert [tokenizer.decode(ids[at]).strip() for at in nouns.at] == [thing.noun, scene.objects[-1].noun]
    same = [other for other in scene.objects if other.noun == thing.noun]
    shown = np.logical_or.reduce([patches_of(other) for other in same])
    start = int(packed.visual_at[0, 0])
    assert torch.equal(nouns.wanted[0, start : start + IMAGE_TOKENS], torch.from_numpy(shown))
    assert nouns.wanted[0].sum() == shown.sum()
    assert [tokenizer.decode(ids[at + 1]).strip() for at in answers.at] == ["Yes", "Yes"]
    assert [torch.nonzero(row).item() for row in answers.wanted] == nouns.at.tolist()


def test_what_is_not_there_is_looked_for_in_the_first_token(
    tokenizer: PreTrainedTokenizerFast, scene: Scene
) -> None:
    absent = next(noun for noun in NOUNS if noun not in {thing.noun for thing in scene.objects})
    _, nouns, _ = looks(
        tokenizer, scene, Turn("exists", f"Is there a {absent}?", f"No, there is no {absent}.")
    )
    assert torch.nonzero(nouns.wanted[0]).tolist() == [[0]]


def test_a_question_without_a_noun_asks_nothing(tokenizer: PreTrainedTokenizerFast, scene: Scene) -> None:
    packed = pack(tokenizer, scene, Turn("background", "What is the background?", "Plain red."))
    assert Grounding(tokenizer).looks(packed, [scene]) is None
    assert Grounding(tokenizer).loss(new_base(tokenizer), {}, packed, [scene]) == 0


def test_the_loss_is_what_transformers_attention_leaves(
    tokenizer: PreTrainedTokenizerFast, scene: Scene
) -> None:
    torch.manual_seed(0)
    vlm = new_base(tokenizer).eval()
    vlm.model.language_model.config._attn_implementation = "eager"
    packed, nouns, answers = looks(tokenizer, scene, exists(scene.objects[0].noun), exists("dog"))
    inputs = {
        layer: torch.randn(*packed.ids.shape, vlm.config.text_config.hidden_size)
        for layer in (*NOUN_LAYERS, ANSWER_LAYER)
    }

    def left(layer: int, wanted: Looks) -> torch.Tensor:
        text = vlm.model.language_model
        rotary = text.rotary_emb(inputs[layer], position_ids=packed.positions)
        decoder = text.layers[layer]
        _, shares = decoder.self_attn(decoder.input_layernorm(inputs[layer]), rotary, packed.mask)
        seen = shares[wanted.row, HEAD, wanted.at]
        return -(seen * wanted.wanted).sum(-1).log().mean()

    with torch.no_grad():
        loss = Grounding(tokenizer).loss(vlm, inputs, packed, [scene])
        expected = sum(left(layer, nouns) for layer in NOUN_LAYERS) + ANSWER_WEIGHT * left(
            ANSWER_LAYER, answers
        )
    torch.testing.assert_close(loss, expected)
