"""Starts what the head that matches words and patches (`matching`) carries from the patches to the word.

A head that looks where a word is shown is of use once it brings along what stands there. Gradient descent
hardly found it (docs/log.md): with 0.92 of the look on the right patches, places were read off the word no
better than without. Two reasons, two remedies. What the head sees of a noun tells its places, size, color and
cells to a linear map, which least squares finds at once. And the stream behind the first layer is so much
longer than before it that whatever a head adds is not heard: so one neuron of that layer for each word makes
it loud, written as the output head reads it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from model.scenes.colors import color_of
from model.scenes.compose import Scene
from model.scenes.language import Turn
from model.scenes.words import COLOR_NAMES, NOUNS, PLACES, SIZES, at_place, plural
from model.train.batches import IMAGE_TOKENS
from model.train.features import FeaturePool
from model.train.forward import embed_packed
from model.train.matching import word_ids
from model.train.pack import Packer

SCENES, ABSENT = 3000, 2  # pictures, and nouns asked of each that it does not show
HEARD_SCENES = 800  # from which the neurons learn
RIDGE = 1e-3
FIRST_PATCH, ASKED_AT = 5, 590  # positions in a prompt: "<s>USER: ", the picture, a question's noun
# Of a word told for certain, in lengths of a noun's state: as the head writes it, and as its neuron does.
WRITTEN, LOUD = 0.15, 0.2
GATE = 4.0  # silu(GATE * r) * r: what is told for certain counts, what is a little likely does not
QUIET_SHARE = 40  # of patches and other words, for which the neurons are to be silent, one in so many
PLACE_WORDS = tuple(dict.fromkeys(word for place in PLACES for word in place.split()))
# Of an answer: "At", "On", "In".
_BEGINNING = {place: at_place(place).split()[0].capitalize() for place in PLACES}
TOLD = (*PLACE_WORDS, *SIZES, *COLOR_NAMES, "Yes", *dict.fromkeys(_BEGINNING.values()))


@torch.no_grad()
def install(
    vlm: LlavaForConditionalGeneration, pool: FeaturePool, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Into values and output of the last head of the first layer, and the neurons that do least there; what
    these did before is lost."""
    size = vlm.config.text_config.head_dim
    attention = vlm.model.language_model.layers[0].self_attn
    words = directions(vlm, tokenizer)
    reads = fit(*_lessons(vlm, pool, tokenizer))
    hearing = Hearing(vlm, pool, tokenizer)
    attention.v_proj.weight[-size:] = 0
    attention.o_proj.weight[:, -size:] = 0
    length, _ = hearing.lengths()
    put(vlm, 0, reads, WRITTEN * length * words)
    hearing.make_loud(words)


def put(vlm: LlavaForConditionalGeneration, layer: int, reads: Tensor, writes: Tensor) -> None:
    """Into the first dimensions of a layer's last head: what it reads and, each in its place, writes
    [told, hidden]."""
    size = vlm.config.text_config.head_dim
    attention = vlm.model.language_model.layers[layer].self_attn
    attention.v_proj.weight[-size : -size + len(reads)] = reads
    attention.o_proj.weight[:, -size : -size + len(reads)] = writes.T


def fit(seen: Tensor, told: Tensor) -> Tensor:
    """[told, hidden]: least squares from what is seen [n, hidden] to what is to be told [n, told]."""
    ridge = RIDGE * seen.square().sum() / seen.shape[1] * torch.eye(seen.shape[1])
    return torch.linalg.solve(seen.T @ seen + ridge, seen.T @ told).T


def what_is_told(scene: Scene, noun: str) -> Tensor:
    """[TOLD and cells]: one where it holds of some object of the noun."""
    things = [thing for thing in scene.objects if thing.noun == noun]
    words = {word for o in things for word in (*o.place.split(), o.size, color_of(o))}
    if things:
        words |= {"Yes", _BEGINNING[things[0].place]}
    cells = {thing.place for thing in things}
    return torch.tensor([float(word in words) for word in TOLD] + [float(place in cells) for place in PLACES])


def directions(vlm: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """[TOLD and cells, hidden], unit: as the output head reads each word; cells have some direction each."""
    ids = [tokenizer.encode(f" {word}", add_special_tokens=False)[0] for word in TOLD]
    words = vlm.lm_head.weight[ids]
    cells = torch.randn(len(PLACES), words.shape[1], generator=torch.Generator().manual_seed(6))
    return F.normalize(torch.cat([words, cells]), dim=-1)


def _lessons(
    vlm: LlavaForConditionalGeneration, pool: FeaturePool, tokenizer: PreTrainedTokenizerFast
) -> tuple[Tensor, Tensor]:
    """What the head sees of nouns, there or not [n, hidden], and what is to be told of them."""
    ids = word_ids(tokenizer)[0]
    rng = np.random.default_rng(8)
    seen, told = [], []
    for number, scene in enumerate(pool.scenes[:SCENES]):
        asked = list(_nouns(scene, rng))
        features = torch.from_numpy(pool.features[number]).float()
        seen.append(looked_at(vlm, features, ids[[NOUNS.index(noun) for noun in asked]]))
        told += [what_is_told(scene, noun) for noun in asked]
    return torch.cat(seen), torch.stack(told)


def _nouns(scene: Scene, rng: np.random.Generator) -> Iterator[str]:
    there = dict.fromkeys(thing.noun for thing in scene.objects)
    yield from there
    yield from rng.choice([noun for noun in NOUNS if noun not in there], ABSENT, replace=False)


def looked_at(vlm: LlavaForConditionalGeneration, features: Tensor, words: Tensor) -> Tensor:
    """[words, hidden]: the normed states of the first token and a picture (features [M, tower hidden]), mixed
    as the head's softmax does when it is asked by each word."""
    text = vlm.model.language_model
    layer, size = text.layers[0], vlm.config.text_config.head_dim
    embeddings = text.embed_tokens.weight
    states = layer.input_layernorm(torch.cat([embeddings[:1], vlm.model.multi_modal_projector(features)]))
    places = torch.cat([torch.zeros(1, dtype=torch.long), FIRST_PATCH + torch.arange(IMAGE_TOKENS)])
    keys = layer.self_attn.k_proj(states)[None, None, :, -size:]
    asks = layer.self_attn.q_proj(layer.input_layernorm(embeddings[words]))[None, None, :, -size:]
    keys, _ = apply_rotary_pos_emb(keys, keys, *text.rotary_emb(keys, position_ids=places[None]))
    at = torch.full((1, len(words)), ASKED_AT)
    asks, _ = apply_rotary_pos_emb(asks, asks, *text.rotary_emb(asks, position_ids=at))
    looks: Tensor = (asks @ keys.mT * layer.self_attn.scaling).softmax(-1)[0, 0]
    return looks @ states


class Hearing:
    """What stands before and behind the first layer's neurons when nouns are asked about."""

    def __init__(
        self, vlm: LlavaForConditionalGeneration, pool: FeaturePool, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        self.vlm, self.pool = vlm, pool
        self.layer = vlm.model.language_model.layers[0]
        self.packer, self.nouns = Packer(tokenizer, IMAGE_TOKENS), word_ids(tokenizer).flatten()

    def lengths(self) -> tuple[float, float]:
        """Of a noun's state before the neurons and behind the layer."""
        before, behind, asked = self.run(0)[:3]
        return before[asked].norm(dim=-1).mean().item(), behind[asked].norm(dim=-1).mean().item()

    def make_loud(self, words: Tensor) -> None:
        heard, told, use = [], [], torch.zeros(())
        for number in range(min(HEARD_SCENES, len(self.pool.scenes))):
            before, _, asked, facts = self.run(number)
            others = ~asked & (
                torch.rand(len(asked), generator=torch.Generator().manual_seed(number)) * QUIET_SHARE < 1
            )
            normed = self.layer.post_attention_layernorm(before)
            heard += [normed[asked], normed[others]]
            told += [facts, facts.new_zeros(int(others.sum()), facts.shape[1])]
            use = use + self._active(normed[asked | others])
        mlp = self.layer.mlp
        neurons = (use * mlp.down_proj.weight.norm(dim=0)).argsort()[: len(words)]
        reads = fit(torch.cat(heard), torch.cat(told))
        _, length = self.lengths()
        mlp.gate_proj.weight[neurons] = GATE * reads
        mlp.up_proj.weight[neurons] = reads
        mlp.down_proj.weight[:, neurons] = LOUD * length / GATE * words.T

    def _active(self, normed: Tensor) -> Tensor:
        mlp = self.layer.mlp
        active: Tensor = (F.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed)).abs().sum(0)
        return active

    def run(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of one picture with questions: states before the neurons and behind the layer [N, hidden], which
        of them are nouns asked about [N], and what is to be told of these."""
        scene, text = self.pool.scenes[number], self.vlm.model.language_model
        asked = list(_nouns(scene, np.random.default_rng([number, 9])))
        ways = ("Is there a {}?", "Where is the {}?", "How many {} are there?")
        turns = []
        for i, noun in enumerate(asked):
            way = ways[(i + number) % len(ways)]
            turns.append(Turn("where", way.format(plural(noun) if "many" in way else noun), "Yes."))
        kept = [np.arange(IMAGE_TOKENS)]
        packed = self.packer.pack([turns], kept)
        states = embed_packed(self.vlm, packed, self.pool.visual(np.array([number]), kept))
        rotary = text.rotary_emb(states, position_ids=packed.positions)
        mixed, _ = self.layer.self_attn(
            self.layer.input_layernorm(states), attention_mask=packed.mask, position_embeddings=rotary
        )
        before = states + mixed
        behind = before + self.layer.mlp(self.layer.post_attention_layernorm(before))
        is_noun = packed.named(self.nouns)
        facts = torch.stack([what_is_told(scene, noun) for noun in asked])
        return before[0], behind[0], is_noun, facts
