"""The heads that tell several objects of a noun apart: what they are led to see, and that they learn it."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast

from model.scenes.compose import GRID, Object, Scene
from model.scenes.language import Turn
from model.scenes.words import PLACES
from model.train.batches import IMAGE_TOKENS
from model.train.cells import CELL_LAYERS, HEADS_EACH, Cells
from model.train.forward import forward_packed
from model.train.looks import Looks, behind_drop
from model.train.pack import Packed, Packer
from model.train.tower import TOWER_CONFIG
from tests.model.lessons import decoder

DROP = 6  # of a decoder of few layers
TURN = Turn("where", "Where are the dogs?", "At the top left and on the right.")


def thing(noun: str, place: str, x: int, y: int) -> Object:
    return Object(noun, "small", place, style=0, x=x, y=y, px=40, flip=False)


SCENE = Scene(
    (thing("dog", "top left", 10, 10), thing("bee", "top", 74, 10), thing("dog", "right", 138, 74)),
    "red",
    "plain",
)


def lesson(tokenizer: PreTrainedTokenizerFast) -> tuple[Packed, torch.Tensor]:
    kept = torch.arange(0, IMAGE_TOKENS, 3).numpy()
    visual = torch.randn(1, len(kept), TOWER_CONFIG.hidden_size, generator=torch.Generator().manual_seed(1))
    return Packer(tokenizer, IMAGE_TOKENS).pack([[TURN]], [kept]), visual


def test_each_place_looks_at_its_own_object_or_at_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    vlm = decoder(tokenizer, DROP)
    cells = Cells(Looks(vlm, Cells.layers(DROP)), tokenizer, DROP)
    packed, visual = lesson(tokenizer)
    (said,) = torch.nonzero(packed.says(cells.nouns))
    taken, wanted = cells._truth(packed, [SCENE], said)
    assert [PLACES[n] for n in taken[0].nonzero().flatten()] == ["top left", "right"]
    for number, place in enumerate(PLACES):
        columns = wanted[0, number].nonzero().flatten()
        if place not in ("top left", "right"):
            assert columns.tolist() == [0]
            continue
        patches = packed.visual_index[0][torch.isin(packed.visual_at[0], columns)]
        row, column = patches // GRID, patches % GRID
        assert len(patches) == len(columns) > 4
        assert set((3 * (row // 8) + column // 8).tolist()) == {number}

    optimizer = torch.optim.Adam(vlm.model.language_model.parameters(), 2e-3)
    for _ in range(40):
        optimizer.zero_grad()
        forward_packed(vlm, packed, visual, DROP)
        cells.loss(packed, [SCENE]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    forward_packed(vlm, packed, visual, DROP)
    for number, layer in enumerate(CELL_LAYERS):
        looks = cells.looks.scores(layer, slice(0, HEADS_EACH), packed, said).softmax(-1)[0]
        right = wanted[0, HEADS_EACH * number : HEADS_EACH * (number + 1)]
        assert ((looks * right).sum(-1) > 0.8).all()


def test_text_is_found_behind_the_drop_layer(tokenizer: PreTrainedTokenizerFast) -> None:
    packed, _ = lesson(tokenizer)
    length, shown = packed.ids.shape[1], packed.visual_at.shape[1]
    states = torch.arange(length)[None, :, None]
    first = int(packed.visual_at[0, 0])
    text = torch.cat([states[:, :first], states[:, first + shown :]], 1)
    for seen in (states, text):
        assert behind_drop(packed, seen, packed.target_at).flatten().tolist() == packed.target_at.tolist()
