"""Text in whole characters: pieces are never taken back, and together they are the tokenizer's own text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.detokenize import UNFINISHED, Detokenizer
from tests.model.tiny import build_tokenizer

bounded = settings(max_examples=150)
TOKENIZER = build_tokenizer()
VOCABULARY_SIZE = len(TOKENIZER)
VOCABULARY = st.integers(0, VOCABULARY_SIZE - 1)


def decode(tokens: list[int]) -> str:
    return TOKENIZER.decode(tokens, skip_special_tokens=True)


def in_pieces(tokens: list[int], cuts: list[int]) -> list[str]:
    """What each push gives when the tokens come in runs that end at `cuts`, then what is held back."""
    detokenizer = Detokenizer(decode)
    bounds = [0, *sorted(cuts), len(tokens)]
    pieces = [detokenizer.push(tokens[start:stop]) for start, stop in pairwise(bounds)]
    pieces.append(detokenizer.push([], last=True))
    assert detokenizer.text == "".join(pieces)
    return pieces


@st.composite
def cut_tokens(draw: st.DrawFn, tokens: st.SearchStrategy[list[int]]) -> tuple[list[int], list[int]]:
    chain = draw(tokens)
    return chain, draw(st.lists(st.integers(0, len(chain)), max_size=12))


@bounded
@given(cut_tokens(st.lists(VOCABULARY, max_size=25)))
def test_any_tokens_in_any_runs(chain_and_cuts: tuple[list[int], list[int]]) -> None:
    """Also bytes that are no character, and special tokens in between."""
    tokens, cuts = chain_and_cuts
    assert "".join(in_pieces(tokens, cuts)) == decode(tokens)


@bounded
@given(st.text(max_size=12), st.data())
def test_characters_are_never_split(text: str, data: st.DataObject) -> None:
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    cuts = data.draw(st.lists(st.integers(0, len(tokens)), max_size=12))
    pieces = in_pieces(tokens, cuts)
    assert "".join(pieces) == text
    assert UNFINISHED in text or not any(UNFINISHED in piece for piece in pieces)


@bounded
@given(cut_tokens(st.lists(VOCABULARY, min_size=1, max_size=25)))
def test_a_resumed_detokenizer_continues_where_the_first_stopped(
    chain_and_cuts: tuple[list[int], list[int]],
) -> None:
    """What was given out for a prefix depends on the prefix alone, not on the runs in which it came."""
    tokens, cuts = chain_and_cuts
    at = cuts[0] if cuts else len(tokens) // 2
    stream = Detokenizer(decode)
    given_out = "".join(stream.push([token]) for token in tokens[:at])
    resumed = Detokenizer(decode)
    assert resumed.push(tokens[:at]) == given_out
    rest = resumed.push(tokens[at:]) + resumed.push([], last=True)
    assert given_out + rest == decode(tokens)


def bytes_alone() -> list[int]:
    """Tokens of bytes that are no character, some of them parts of one."""
    return [token for token in range(len(TOKENIZER)) if decode([token]) == UNFINISHED]


WHOLE = TOKENIZER.encode("日🌍é", add_special_tokens=False)


@bounded
@given(
    cut_tokens(
        st.lists(
            st.one_of(
                st.sampled_from(bytes_alone()).map(lambda token: [token]),
                st.lists(st.sampled_from(bytes_alone()), min_size=20, max_size=30),
                st.sampled_from([WHOLE, WHOLE[:2], [TOKENIZER.eos_token_id], [VOCABULARY_SIZE - 1]]),
            ),
            max_size=12,
        ).map(lambda runs: [token for run in runs for token in run])
    )
)
def test_long_runs_of_bytes_that_are_no_character(chain_and_cuts: tuple[list[int], list[int]]) -> None:
    """They are given out before they end, and a whole character among or behind them still is one."""
    tokens, cuts = chain_and_cuts
    assert "".join(in_pieces(tokens, cuts)) == decode(tokens)


@pytest.mark.parametrize("kind", ["word", "special", "bytes", "bytes and special"])
def test_the_window_stays_short(kind: str) -> None:
    """Tokens without text stayed in it: two thousand of them cost seconds of the engine's own thread."""
    eos, word, byte = TOKENIZER.eos_token_id, TOKENIZER.encode("the")[-1], bytes_alone()[0]
    tokens = {"word": [word], "special": [eos], "bytes": [byte], "bytes and special": [byte, *[eos] * 400]}
    longest = 0

    def measured(window: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(window))
        return decode(list(window))

    detokenizer = Detokenizer(measured)
    chain = tokens[kind] * (400 // len(tokens[kind]) + 1)
    assert detokenizer.push(chain) + detokenizer.push([], last=True) == decode(chain)
    assert longest <= 40


@pytest.mark.parametrize("text", ["🌍", "日本語", "é" * 5, "a 🌍 b", "👩‍👩‍👧", "naïve"])
def test_a_character_waits_for_its_last_byte(text: str) -> None:
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    pieces = in_pieces(tokens, list(range(len(tokens))))
    assert "".join(pieces) == text
    assert not any(UNFINISHED in piece for piece in pieces)


def test_a_tokenizer_that_drops_the_leading_space() -> None:
    """SentencePiece's decode strips the space of the first word: words in later pieces must keep theirs."""
    words = ["the", "cat", "sat"]
    detokenizer = Detokenizer(lambda tokens: " ".join(words[token] for token in tokens))
    assert [detokenizer.push([token]) for token in range(3)] == ["the", " cat", " sat"]


def test_without_a_tokenizer_there_is_no_text() -> None:
    detokenizer = Detokenizer(None)
    assert detokenizer.push([1, 2]) == detokenizer.push([], last=True) == detokenizer.text == ""
