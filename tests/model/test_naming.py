"""The head that looks at what is named next: which patches it is led to see, and that it learns it."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from model.scenes.compose import patches_of
from model.scenes.language import Turn, listed
from model.train.batches import IMAGE_TOKENS
from model.train.forward import forward_packed
from model.train.looks import LAST_HEAD, Looks
from model.train.naming import NAMING_LAYER, Naming
from model.train.pack import Packed, Packer
from model.train.tower import TOWER_CONFIG
from tests.model.lessons import decoder
from tests.model.test_cells import SCENE

DROP = NAMING_LAYER + 1  # of a decoder of few layers
KEPT = torch.arange(0, IMAGE_TOKENS, 3).numpy()


def naming_of(tokenizer: PreTrainedTokenizerFast) -> Naming:
    return Naming(Looks(decoder(tokenizer, DROP), Naming.layers(DROP)), tokenizer, DROP)


def packed_of(tokenizer: PreTrainedTokenizerFast, *turns: Turn) -> Packed:
    return Packer(tokenizer, IMAGE_TOKENS).pack([list(turns)], [KEPT])


def lesson_of(naming: Naming, packed: Packed, *, leading: bool = True) -> torch.Tensor:
    visual = torch.randn(1, len(KEPT), TOWER_CONFIG.hidden_size, generator=torch.Generator().manual_seed(1))
    hidden = forward_packed(naming.vlm, packed, visual, DROP).flatten(0, 1)
    return naming.loss(packed, [SCENE], hidden, leading=leading)


def test_what_is_told_is_looked_at_and_what_was_asked_is_not(tokenizer: PreTrainedTokenizerFast) -> None:
    naming = naming_of(tokenizer)
    packed = packed_of(
        tokenizer,
        Turn("exists", "Is there a dog?", "Yes, there is a dog."),
        Turn("describe", "List the objects.", listed(SCENE)),
        Turn("exists", "Is there a cat?", "No, there is no cat."),
    )
    for leading, words in ((frozenset(), ["dogs", "bee"]), (naming.leading, ["Two", "dogs", "a", "bee"])):
        at, wanted = naming._truth(packed, [SCENE], leading)
        said = [tokenizer.decode(token) for token in packed.ids.flatten()[at + 1].tolist()]
        assert [word.strip() for word in said] == words
        nouns = ["dog"] * (len(words) // 2) + ["bee"] * (len(words) // 2)
        for noun, columns in zip(nouns, wanted, strict=True):
            shown = packed.visual_index[0][torch.isin(packed.visual_at[0], columns.nonzero().flatten())]
            patches = [torch.from_numpy(patches_of(o)) for o in SCENE.objects if o.noun == noun]
            every = torch.stack(patches).any(0)
            assert shown.tolist() == [i for i in KEPT.tolist() if every[i]]


def test_a_rare_word_is_not_drowned(tokenizer: PreTrainedTokenizerFast) -> None:
    naming = naming_of(tokenizer)
    [a], [an], [dog], [bee] = tokenizer([" a", " an", " dog", " bee"], add_special_tokens=False).input_ids
    share = naming._share(torch.tensor([a] * 9 + [an] + [dog, bee, bee, bee]))
    # Kinds of 9, 1 and 4: "an" is told once and weighs a third of all "a", the nouns together two thirds.
    expected = [1 / 18] * 9 + [1 / 6] + [1 / 12] * 4
    assert share.tolist() == pytest.approx(expected)


def test_nothing_told_is_no_lesson(tokenizer: PreTrainedTokenizerFast) -> None:
    packed = packed_of(tokenizer, Turn("background", "What is the background?", "Plain red."))
    assert lesson_of(naming_of(tokenizer), packed) == 0


@pytest.mark.parametrize("leading", [False, True])
def test_it_is_learned(tokenizer: PreTrainedTokenizerFast, leading: bool) -> None:
    naming = naming_of(tokenizer)
    packed = packed_of(tokenizer, Turn("describe", "List the objects.", listed(SCENE)))
    optimizer = torch.optim.Adam(naming.vlm.parameters(), 2e-3)
    for _ in range(40):
        optimizer.zero_grad()
        lesson_of(naming, packed, leading=leading).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    lesson_of(naming, packed, leading=leading)
    at, wanted = naming._truth(packed, [SCENE], naming.leading if leading else frozenset())
    looks = naming.looks.scores(NAMING_LAYER, LAST_HEAD, packed, at)[:, 0].softmax(-1)
    assert ((looks * wanted).sum(-1) > 0.8).all()
    before = naming.vlm.model.language_model.norm(naming.looks.entering[DROP]).flatten(0, 1)[at]
    assert naming.vlm.lm_head(before).argmax(-1).tolist() == packed.ids.flatten()[at + 1].tolist()
