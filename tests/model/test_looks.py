"""Where heads look, from places in whatever order."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast

from model.scenes.language import Turn
from model.train.batches import IMAGE_TOKENS
from model.train.forward import forward_packed
from model.train.looks import Looks
from model.train.pack import Packer
from model.train.tower import TOWER_CONFIG
from tests.model.lessons import decoder

LAYER = 2


def test_many_places_are_each_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    """Rows have unlike numbers of places, a place is asked for twice, and none are in order."""
    vlm = decoder(tokenizer, LAYER)
    looks = Looks(vlm, [LAYER])
    turns = [Turn("count", "How many dogs are there?", answer) for answer in ("One dog.", "Two dogs.")]
    kept = torch.arange(0, IMAGE_TOKENS, 40).numpy()
    packed = Packer(tokenizer, IMAGE_TOKENS).pack([[turns[0]], turns], [kept, kept])
    forward_packed(vlm, packed, torch.randn(2, len(kept), TOWER_CONFIG.hidden_size))
    length = packed.ids.shape[1]
    at = torch.tensor([length + 30, 25, length + 35, length + 30, 22, 2 * length - 1])
    heads = slice(1, 3)
    together = looks.scores(LAYER, heads, packed, at)
    assert together.shape == (len(at), 2, length)
    for place, scores in zip(at, together, strict=True):
        torch.testing.assert_close(looks.scores(LAYER, heads, packed, place[None])[0], scores)
