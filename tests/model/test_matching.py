"""The head that matches words and patches: found by regression, it looks where the noun is shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from model.scenes.compose import Scene, random_scene
from model.scenes.language import Turn
from model.scenes.words import NOUNS
from model.train import matching
from model.train.base import answer_loss, new_base
from model.train.batches import IMAGE_TOKENS
from model.train.features import FeaturePool
from model.train.matching import install, noun_of_patches, word_ids
from model.train.pack import Packer
from model.train.questions import asked_and_told
from model.train.tower import TOWER_CONFIG

FEW = 12  # of the nouns
AT = 590  # where a question's noun stands


@pytest.fixture(scope="module")
def pool() -> FeaturePool:
    """A tower that tells nouns apart: each has a direction of its own in the features, in much noise."""
    scenes = [random_scene(np.random.default_rng(seed), among=NOUNS[:FEW]) for seed in range(60)]
    generator = np.random.default_rng(0)
    direction = generator.normal(0, 1, (len(NOUNS) + 1, TOWER_CONFIG.hidden_size))
    shown = np.stack([noun_of_patches(scene).numpy() for scene in scenes])
    noise = generator.normal(0, 0.7, (len(scenes), IMAGE_TOKENS, TOWER_CONFIG.hidden_size))
    return FeaturePool((direction[shown] + noise).astype(np.float16), scenes)


def looks(vlm: torch.nn.Module, pool: FeaturePool, number: int, word: int) -> torch.Tensor:
    """What the matcher's softmax gives the first token [0] and each patch, asked by a word."""
    text = vlm.model.language_model
    layer, size = text.layers[0], vlm.config.text_config.head_dim
    keys = vlm.model.multi_modal_projector(torch.from_numpy(pool.features[number]).float())
    keys = torch.cat([text.embed_tokens.weight[:1], keys])
    asks = text.embed_tokens.weight[word][None]
    k = layer.self_attn.k_proj(layer.input_layernorm(keys))[None, None, :, -size:]
    q = layer.self_attn.q_proj(layer.input_layernorm(asks))[None, None, :, -size:]
    places = torch.cat([torch.tensor([0]), 5 + torch.arange(IMAGE_TOKENS)])
    k, _ = apply_rotary_pos_emb(k, k, *text.rotary_emb(k, position_ids=places[None]))
    q, _ = apply_rotary_pos_emb(q, q, *text.rotary_emb(q, position_ids=torch.tensor([[AT]])))
    return (q @ k.mT / size**0.5).softmax(-1).flatten()


def test_the_head_finds_what_the_word_names(
    pool: FeaturePool, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what is there it sees the patches, of what is not the first token, for one and for many alike."""
    monkeypatch.setattr(matching, "STEPS", 300)
    monkeypatch.setattr(matching, "BATCH", 512)
    torch.manual_seed(0)
    vlm = new_base(tokenizer)
    install(vlm, pool, tokenizer)
    words = word_ids(tokenizer)
    there, absent = [], []
    with torch.no_grad():
        for number, scene in enumerate(pool.scenes[:10]):
            shown = noun_of_patches(scene)
            for noun in range(FEW):
                for form in words:
                    look = looks(vlm, pool, number, int(form[noun]))
                    if (shown == noun).any():
                        there.append(float(look[1:][shown == noun].sum()))
                    else:
                        absent.append(float(look[0]))
    assert np.mean(there) > 0.8
    assert np.mean(absent) > 0.8


def test_installing_leaves_what_the_layer_adds(
    pool: FeaturePool, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "STEPS", 1)
    vlm = new_base(tokenizer)
    size = vlm.config.text_config.head_dim
    vlm.model.language_model.layers[0].self_attn.o_proj.weight.data.normal_()
    before = vlm.model.language_model.layers[0].self_attn.o_proj.weight.clone()
    install(vlm, pool, tokenizer)
    after = vlm.model.language_model.layers[0].self_attn.o_proj.weight
    assert torch.equal(before[:, :-size], after[:, :-size])
    assert not after[:, -size:].any()


def test_what_a_question_names_is_asked_for_what_its_answer_tells(tokenizer: PreTrainedTokenizerFast) -> None:
    told = [
        Turn("describe", "Describe the image.", "One object. At the top there is a small cat."),
        Turn("exists", "Is there a dog?", "No, there is no dog."),
        Turn("where", "Where is the cat?", "At the top left."),
        Turn("what", "What is at the top left?", "A small cat."),
    ]
    packed = Packer(tokenizer, IMAGE_TOKENS).pack([told, told], [np.arange(8), np.arange(8)])

    def pairs(asked: torch.Tensor, answers: torch.Tensor) -> list[tuple[str, str]]:
        said, answer = packed.asked(asked, answers)
        words = (packed.ids.flatten()[said], packed.target[answer])
        names = [[name[1:] for name in tokenizer.convert_ids_to_tokens(ids.tolist())] for ids in words]
        return list(zip(*names, strict=True))

    of_nouns, of_places = asked_and_told(tokenizer)
    repeated = ("dog", "dog")
    assert pairs(*of_nouns) == [("dog", "No"), repeated, ("cat", "At"), ("cat", "top"), ("cat", "left")] * 2
    assert pairs(*of_places) == [("left", "A"), ("left", "small"), ("left", "cat")] * 2
    starts = packed.target[packed.starts].tolist()
    assert tokenizer.convert_ids_to_tokens(starts) == ["ĠOne", "ĠNo", "ĠAt", "ĠA"] * 2


def test_a_short_answer_is_not_drowned(tokenizer: PreTrainedTokenizerFast) -> None:
    """Two answers, one four times as long: the long one weighs twice as much, not four times."""
    told = [Turn("describe", "Describe.", "cat " * 7 + "cat"), Turn("exists", "Cat?", "cat")]
    packed = Packer(tokenizer, IMAGE_TOKENS).pack([told], [np.arange(8)])
    lengths = torch.bincount(packed.turn).float()
    logits = torch.zeros(len(packed.target), len(tokenizer))
    logits[packed.turn == 1] = (
        1e4 * torch.nn.functional.one_hot(packed.target, len(tokenizer))[packed.turn == 1]
    )
    share = lengths[0].sqrt() / lengths.sqrt().sum()
    torch.testing.assert_close(
        answer_loss(logits, packed), share * np.log(len(tokenizer)), rtol=1e-4, atol=1e-4
    )


def test_patches_have_the_noun_of_their_object() -> None:
    scene: Scene = random_scene(np.random.default_rng(3))
    shown = noun_of_patches(scene)
    assert set(shown.tolist()) - {len(NOUNS)} == {NOUNS.index(thing.noun) for thing in scene.objects}
