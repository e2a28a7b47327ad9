"""Earlier turns of a chat in the checkpoint's own template, each with its own pictures."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from model.checkpoint import EMBEDDED_BASE
from model.request import RequestError, Turn
from model.words import Words


@pytest.fixture(scope="module")
def words() -> Words:
    config = AutoConfig.from_pretrained(EMBEDDED_BASE)
    return Words(EMBEDDED_BASE, config.image_token_id, whole=True)


def text_of(words: Words, *asked: object) -> str:
    text = words.tokenizer.decode(words.prompt_token_ids(*asked))  # type: ignore[arg-type]
    return str(text).removeprefix(words.tokenizer.bos_token)


def test_turns_stand_in_the_order_in_which_they_were_said(words: Words) -> None:
    history = (Turn("user", "What is this?", images=1), Turn("assistant", "A dog."))
    text = text_of(words, "And this?", 2, history)
    alone = text_of(words, "And this?", 1)
    assert text.endswith(alone)
    before = text.removesuffix(alone)
    assert before.count("<image>") == alone.count("<image>") == 1
    assert before.index("What is this?") < before.index("ASSISTANT:") < before.index("A dog.")


def test_pictures_that_are_not_there_are_an_error(words: Words) -> None:
    with pytest.raises(RequestError):
        words.prompt_token_ids("And this?", 1, (Turn("user", "These?", images=2),))
