"""The reference is anchored: unpruned it equals transformers' `generate`, and its formula the paper's."""

from __future__ import annotations

import pytest

from tests.model.harness import IMAGE, World
from tests.model.reference import Reference, kept_count


@pytest.mark.parametrize("parts", [(6,), (5, IMAGE, 4), (IMAGE, 3, IMAGE, 2), (5, IMAGE)])
def test_unpruned_reference_is_generate(
    tame: World, tame_reference: Reference, parts: tuple[int | str, ...]
) -> None:
    prompt = tame.prompt(11, *parts)
    answer = tame_reference.generate(prompt.ids, prompt.pixels, retained=None, max_tokens=12)
    assert answer.token_ids == tame.generate(prompt, 12)


@pytest.mark.parametrize("retained", [None, 8])
def test_reference_speculation_changes_no_token(
    wild: World, wild_reference: Reference, retained: int | None
) -> None:
    prompt = wild.prompt(12, 5, IMAGE, 4)
    plain, fast = (
        wild_reference.generate(prompt.ids, prompt.pixels, retained=retained, max_tokens=16, speculation=flag)
        for flag in (False, True)
    )
    assert plain.token_ids == fast.token_ids
    assert fast.draft_tokens > fast.accepted_tokens > 0


def test_pruning_changes_answers_of_the_wild_world(wild: World, wild_reference: Reference) -> None:
    """Otherwise every pruning test would pass on an engine that never prunes."""
    prompt = wild.prompt(13, 5, IMAGE, 4)
    answers = [
        wild_reference.generate(prompt.ids, prompt.pixels, retained=retained, max_tokens=8).token_ids
        for retained in (None, 10, 6)
    ]
    assert answers[0] != answers[1] != answers[2] != answers[0]


def test_some_answers_of_the_tame_world_end_in_eos(tame: World) -> None:
    lengths = {len(tame.generate(tame.prompt(seed, 5, IMAGE, 4), 24)) for seed in range(6)}
    assert min(lengths) < 24


@pytest.mark.parametrize(
    ("layers", "tokens", "retained", "fork_layer", "drop_layer", "kept"),
    [
        (32, 576, 192, 2, 24, 227),
        (32, 576, 128, 2, 24, 134),
        (32, 576, 64, 2, 24, 41),
        (16, 576, 64, 1, 12, 41),
    ],
)
def test_paper_formula(
    layers: int, tokens: int, retained: int, fork_layer: int, drop_layer: int, kept: int
) -> None:
    assert kept_count(layers, tokens, retained, fork_layer, drop_layer) == kept
