"""Starts one head of the first layer as a matcher of words and patches, before the decoder learns to use it.

"Is there a dog?" asks a layer to find, among hundreds of patches, those that read as the question's word.
Gradient descent on answers finds such a head late or never (docs/log.md), logistic regression at once: keys
of patches and queries of words, such that a word's score with a patch says whether the patch shows it. The
first token scores between a patch that does and one that does not: so what is there wins the softmax over the
prompt, and what is not there loses it.

Only slow rotary pairs carry the match, turned back by half a picture, since the word and the patch stand
hundreds of positions apart. The head's output starts at zero: nothing changes until training wants it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from model.scenes.compose import Scene, patches_of
from model.scenes.words import NOUNS, plural
from model.train.batches import IMAGE_TOKENS
from model.train.features import FeaturePool

FIRST_PAIR = 18  # of 32; at 10,000^(-18/32) radians a position half a picture turns it by 1.6
SCENES, STEPS, BATCH, RATE = 4000, 1200, 2048, 1e-2
# Scores: from where on a patch is taken to show the noun, and the first token's, which stands for hundreds.
SHOWN, FIRST_TOKEN = 10.0, 11.0
GROUND_SHARE = 6  # of the patches of nothing one in so many is learned from
# Normed states [n, hidden], noun of each [n] (len(NOUNS) for nothing), which of the picture's patches it is.
Patches = tuple[Tensor, Tensor, Tensor]
Fitted = tuple[Tensor, Tensor, Tensor]


def install(
    vlm: LlavaForConditionalGeneration, pool: FeaturePool, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Into the last head of the first layer; the nouns' embeddings move a little."""
    vocabulary = _normed(vlm, vlm.get_input_embeddings().weight.detach())
    ids = word_ids(tokenizer).flatten()
    rates = vlm.model.language_model.rotary_emb.inv_freq[FIRST_PAIR:]
    keys, queries, shift = fit(_patches(vlm, pool), vocabulary[ids], vocabulary, rates)
    put(vlm, keys, queries, rates)
    move(vlm, ids, shift)


def word_ids(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """[2, nouns] token ids of each noun, of one and of many."""
    forms: tuple[Callable[[str], str], ...] = (str, plural)
    ids = [
        [tokenizer.encode(f" {form(noun)}", add_special_tokens=False)[0] for noun in NOUNS] for form in forms
    ]
    return torch.tensor(ids)


def noun_of_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[int, str]:
    return {int(token): noun for form in word_ids(tokenizer) for token, noun in zip(form, NOUNS, strict=True)}


def _normed(vlm: LlavaForConditionalGeneration, states: Tensor) -> Tensor:
    normed: Tensor = vlm.model.language_model.layers[0].input_layernorm(states)
    return normed.detach()


@torch.no_grad()
def _patches(vlm: LlavaForConditionalGeneration, pool: FeaturePool) -> Patches:
    states, nouns, places = [], [], []
    for number, scene in enumerate(pool.scenes[:SCENES]):
        shown = noun_of_patches(scene)
        some = (shown < len(NOUNS)) | (torch.arange(IMAGE_TOKENS) % GROUND_SHARE == number % GROUND_SHARE)
        features = torch.from_numpy(pool.features[number][some.numpy()]).float()
        states.append(_normed(vlm, vlm.model.multi_modal_projector(features)))
        nouns.append(shown[some])
        places.append(torch.nonzero(some).flatten())
    return torch.cat(states), torch.cat(nouns), torch.cat(places)


def noun_of_patches(scene: Scene) -> Tensor:
    shown = torch.full((IMAGE_TOKENS,), len(NOUNS))
    for thing in scene.objects:
        shown[torch.from_numpy(patches_of(thing))] = NOUNS.index(thing.noun)
    return shown


def fit(patches: Patches, words: Tensor, vocabulary: Tensor, rates: Tensor) -> Fitted:
    """Weights [d, hidden] of keys and queries, whose product says whether a patch shows what a word names;
    and how far each word has to move for that, a little.

    words: normed embeddings [2 * nouns, hidden], of one and of many. vocabulary: of all tokens, the first
    token's first; as keys the others show nothing. rates: radians a position, of each pair.
    """
    torch.manual_seed(5)
    states, nouns, places = patches
    hidden, width = states.shape[1], 2 * len(rates)
    keys, queries = nn.Linear(hidden, width, bias=False), nn.Linear(hidden, width, bias=False)
    shift = nn.Parameter(torch.zeros_like(words))
    optimizer = torch.optim.AdamW([keys.weight, queries.weight, shift], RATE, weight_decay=1e-3)
    shows = F.one_hot(torch.arange(len(NOUNS) + 1))[:, :-1].float().repeat(1, 2)
    before, behind = torch.tensor([-5]), torch.full((len(vocabulary) - 1,), IMAGE_TOKENS)

    def scores(rows: Tensor, at: Tensor) -> Tensor:
        return _turned(keys(rows), (at - IMAGE_TOKENS / 2)[:, None] * rates) @ queries(words + shift).T

    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        picks = torch.randint(len(states), (BATCH,))
        said = scores(states[picks], places[picks]) - SHOWN
        loss = F.binary_cross_entropy_with_logits(said, shows[nouns[picks]], reduction="sum") / BATCH
        loss = loss + 0.1 * F.softplus(scores(vocabulary[1:], behind) - SHOWN).sum(-1).mean()
        loss = loss + (scores(vocabulary[:1], before) - FIRST_TOKEN).square().mean()
        loss = loss + 0.03 * shift.square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return keys.weight.detach(), queries.weight.detach(), shift.detach()


def _turned(states: Tensor, angles: Tensor) -> Tensor:
    """[n, d] turned pair by pair as rotary positions do it; angles [n or 1, d / 2]."""
    real, imaginary = states.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([real * cos - imaginary * sin, imaginary * cos + real * sin], -1)


@torch.no_grad()
def put(vlm: LlavaForConditionalGeneration, keys: Tensor, queries: Tensor, rates: Tensor) -> None:
    text = vlm.config.text_config
    size, half = text.head_dim, text.head_dim // 2
    base = (text.num_attention_heads - 1) * size
    pairs = base + torch.arange(FIRST_PAIR, half)
    dims = torch.cat([pairs, pairs + half])
    attention = vlm.model.language_model.layers[0].self_attn
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[base : base + size] = 0
    back = _turned(queries.T, -(IMAGE_TOKENS / 2) * rates[None]).T
    attention.q_proj.weight[dims] = back * math.sqrt(size)  # by which attention divides its scores
    attention.k_proj.weight[dims] = keys
    attention.o_proj.weight[:, base : base + size] = 0


@torch.no_grad()
def move(vlm: LlavaForConditionalGeneration, ids: Tensor, shift: Tensor) -> None:
    """Adds to the embeddings of `ids` what becomes `shift` once it is normed."""
    embeddings = vlm.get_input_embeddings().weight
    scale = embeddings[ids].square().mean(-1, keepdim=True).sqrt()
    embeddings[ids] += shift * scale / vlm.model.language_model.layers[0].input_layernorm.weight
