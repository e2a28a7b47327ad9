"""What two heads are started with: what stands where a noun is shown comes to the noun, and to the answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from model.scenes.compose import GRID, random_scene
from model.scenes.words import NOUNS, PLACES
from model.train import carrying, fetching, matching
from model.train.base import new_base
from model.train.batches import IMAGE_TOKENS
from model.train.carrying import TOLD, Hearing, what_is_told
from model.train.features import FeaturePool
from model.train.matching import noun_of_patches
from model.train.tower import TOWER_CONFIG

FEW, SCENES = 8, 60
LAYER = 3  # a decoder of few layers
CELLS = slice(len(TOLD), None)


@pytest.fixture(scope="module")
def pool() -> FeaturePool:
    """A tower that tells what a patch shows and in which cell it lies, in some noise."""
    scenes = [random_scene(np.random.default_rng(seed), among=NOUNS[:FEW]) for seed in range(SCENES)]
    generator = np.random.default_rng(0)
    noun, cell = (generator.normal(0, 1, (n, TOWER_CONFIG.hidden_size)) for n in (len(NOUNS) + 1, 9))
    at = np.arange(IMAGE_TOKENS)
    cells = at // GRID // (GRID // 3) * 3 + at % GRID // (GRID // 3)
    shown = np.stack([noun_of_patches(scene).numpy() for scene in scenes])
    noise = generator.normal(0, 0.3, (SCENES, IMAGE_TOKENS, TOWER_CONFIG.hidden_size))
    return FeaturePool((noun[shown] + cell[cells] + noise).astype(np.float16), scenes)


@pytest.fixture(scope="module")
def vlm(pool: FeaturePool, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "STEPS", 300)
        patch.setattr(matching, "BATCH", 512)
        patch.setattr(fetching, "QUESTIONS_EACH", 12)
        torch.manual_seed(0)
        vlm = new_base(tokenizer)
        del vlm.model.language_model.layers[LAYER + 1 :]
        matching.install(vlm, pool, tokenizer)
        carrying.install(vlm, pool, tokenizer)
        fetching.install(vlm, pool, tokenizer, LAYER)
    return vlm


def share_right(told: torch.Tensor, facts: torch.Tensor) -> float:
    """Of the nouns that are shown in one cell: whose cell is told loudest."""
    once = facts[:, CELLS].sum(-1) == 1
    right = told[once][:, CELLS].argmax(-1) == facts[once][:, CELLS].argmax(-1)
    return float(right.float().mean())


@torch.no_grad()
def test_the_words_state_tells_where_it_is_shown(
    vlm: LlavaForConditionalGeneration, pool: FeaturePool, tokenizer: PreTrainedTokenizerFast
) -> None:
    hearing, words = Hearing(vlm, pool, tokenizer), carrying.directions(vlm, tokenizer)
    told, facts = [], []
    for number in range(20):
        _, behind, asked, of_scene = hearing.run(number)
        told.append(behind[asked] @ words.T)
        facts.append(of_scene)
    assert share_right(torch.cat(told), torch.cat(facts)) > 0.8


def test_what_is_told_is_of_all_objects_of_the_noun() -> None:
    scene = next(
        scene
        for scene in (random_scene(np.random.default_rng(seed)) for seed in range(100))
        if len(scene.objects) > len({thing.noun for thing in scene.objects})
    )
    noun = next(o.noun for o in scene.objects if sum(o.noun == other.noun for other in scene.objects) > 1)
    places = {o.place for o in scene.objects if o.noun == noun}
    facts = what_is_told(scene, noun)
    assert {place for place, told in zip(PLACES, facts[CELLS], strict=True) if told} == places
    words = {word for word, told in zip(TOLD, facts, strict=False) if told}
    assert words >= {"Yes", *" ".join(places).split()}
    absent = next(other for other in NOUNS if all(o.noun != other for o in scene.objects))
    assert not what_is_told(scene, absent).any()


@torch.no_grad()
def test_the_head_that_fetches_reads_what_the_word_was_told(
    vlm: LlavaForConditionalGeneration, pool: FeaturePool, tokenizer: PreTrainedTokenizerFast
) -> None:
    states, facts, _ = fetching.lessons(vlm, pool, tokenizer, LAYER)
    first = -vlm.config.text_config.head_dim
    values = vlm.model.language_model.layers[LAYER].self_attn.v_proj.weight[first : first + len(TOLD)]
    told = states @ values.T
    yes = TOLD.index("Yes")
    there = facts[:, yes] > 0
    assert told[there, yes].mean() > told[~there, yes].mean() + 0.3
