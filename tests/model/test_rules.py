"""The pure rules of speculation, over all drafts: budget, stop, acceptance."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from model.speculative import accept, draft_budget, draft_stop, drafting_stops, until_eos

exhaustive = settings(max_examples=300)
tokens = st.integers(0, 4)


@exhaustive
@given(st.integers(0, 9), st.integers(1, 40), st.integers(0, 45))
def test_draft_budget(draft_tokens: int, max_tokens: int, produced: int) -> None:
    """Fully accepted drafts and the verifier's own token never exceed max_tokens."""
    budget = draft_budget(draft_tokens, max_tokens, produced)
    assert 0 <= budget <= draft_tokens
    if produced < max_tokens:
        assert produced + budget + 1 <= max_tokens
        assert budget == draft_tokens or produced + budget + 1 == max_tokens
    else:
        assert budget == 0


@exhaustive
@given(st.data(), st.lists(tokens, max_size=8))
def test_accept_is_what_the_base_alone_would_say(data: st.DataObject, draft: list[int]) -> None:
    """The base's choices are a function of the prefix, so what is emitted must be the base's own chain."""
    verified = data.draw(st.lists(tokens, min_size=len(draft) + 1, max_size=len(draft) + 1))
    emitted = accept(draft, verified)
    agreed = len(emitted) - 1
    assert emitted == verified[: len(emitted)]
    assert draft[:agreed] == emitted[:agreed]
    assert agreed == len(draft) or draft[agreed] != verified[agreed]


def test_accept_by_hand() -> None:
    assert accept([], [7]) == [7]
    assert accept([1, 2, 3], [1, 2, 3, 4]) == [1, 2, 3, 4]
    assert accept([1, 9, 3], [1, 2, 3, 4]) == [1, 2]
    assert accept([9, 2, 3], [1, 2, 3, 4]) == [1]


@exhaustive
@given(st.lists(tokens, max_size=10), st.frozensets(tokens, max_size=3))
def test_until_eos(chain: list[int], eos: frozenset[int]) -> None:
    cut = until_eos(chain, eos)
    assert cut == chain[: len(cut)]
    assert not eos & set(cut[:-1])
    assert cut == chain or cut[-1] in eos


def test_what_ended_a_draft() -> None:
    eos = frozenset({2})
    assert draft_stop([], 5, eos) is None
    assert draft_stop([7, 2], 5, eos) == "eos"
    assert draft_stop([7, 2], 2, eos) == "eos"
    assert draft_stop([7, 8], 2, eos) == "budget"
    assert draft_stop([7, 8], 3, eos) == "confidence"


def test_drafting_stops() -> None:
    """A probability of exactly the threshold goes on."""
    eos = frozenset({2})
    assert drafting_stops(2, 0.99, 0.6, eos)
    assert drafting_stops(5, 0.59, 0.6, eos)
    assert not drafting_stops(5, 0.6, 0.6, eos)
    assert not drafting_stops(2, 0.99, 0.6, frozenset())
