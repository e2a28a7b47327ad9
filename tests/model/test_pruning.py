"""Twig-guided token pruning against the cache-free reference, and its arithmetic against the paper."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.engine import RequestError
from model.pruning import kept_budget, nearest_legal, share_of
from tests.model.harness import IMAGE, World, ask, run
from tests.model.reference import Reference, kept_count
from tests.model.tiny import Shape, TwigShape

# (K, T, F) of a base with 6 layers.
SHAPES = [(1, 1, 3), (1, 3, 6), (2, 2, 4), (2, 1, 5), (3, 2, 4)]


def legal_range(world: World, tokens: int) -> list[int]:
    """The whole numbers R-bar for which 0 <= R' <= M."""
    twig, layers = world.twig, world.shape.layers
    return [
        retained
        for retained in range(tokens + 1)
        if 0 <= kept_count(layers, tokens, retained, twig.fork_layer, twig.drop_layer) <= tokens
    ]


@pytest.mark.parametrize(("fork_layer", "twig_layers", "drop_layer"), SHAPES)
def test_kept_tokens_and_answers(wild: World, fork_layer: int, twig_layers: int, drop_layer: int) -> None:
    twig = TwigShape(fork_layer, twig_layers, drop_layer, retained_tokens=8)
    world = wild.retwig(f"twig-{fork_layer}{twig_layers}{drop_layer}", twig)
    engine, reference = world.engine(), world.reference()
    legal = legal_range(world, world.shape.visual_tokens)
    for seed, retained in enumerate({legal[0], legal[len(legal) // 2], legal[-1]}):
        prompt = world.prompt(seed, 5, IMAGE, 4)
        expected = reference.generate(prompt.ids, prompt.pixels, retained=retained, max_tokens=10)
        (result,) = run(
            engine, ask(prompt, str(retained), retained=retained, max_tokens=10, speculation=False)
        )
        assert result.kept_indices == expected.indices
        assert result.kept_tokens == len(expected.indices)
        assert result.token_ids == expected.token_ids


@pytest.mark.parametrize(
    "parts", [(IMAGE, 6), (5, IMAGE, 1), (5, IMAGE), (3, IMAGE, 4, IMAGE, 2), (IMAGE, IMAGE, 1)]
)
def test_every_place_of_the_image(
    wild: World, wild_reference: Reference, parts: tuple[int | str, ...]
) -> None:
    prompt = wild.prompt(6, *parts)
    retained = 8 * prompt.images
    expected = wild_reference.generate(prompt.ids, prompt.pixels, retained=retained, max_tokens=12)
    (result,) = run(wild.engine(), ask(prompt, retained=retained, max_tokens=12, speculation=False))
    assert result.kept_indices == expected.indices
    assert result.token_ids == expected.token_ids
    assert result.image_tokens == prompt.images * wild.shape.visual_tokens


def test_drops_every_visual_token_at_the_fork(tmp_path: Path) -> None:
    """R' = 0: K*M = L*R-bar exactly."""
    world = World.create(tmp_path, Shape(seed=2, layers=8), TwigShape(fork_layer=2, drop_layer=6))
    prompt = world.prompt(0, 5, IMAGE, 4)
    expected = world.reference().generate(prompt.ids, prompt.pixels, retained=4, max_tokens=10)
    (result,) = run(world.engine(), ask(prompt, retained=4, max_tokens=10))
    assert (result.kept_tokens, result.kept_indices) == (0, [])
    assert result.token_ids == expected.token_ids


def test_keeps_all_until_the_drop_layer(tmp_path: Path) -> None:
    """R' = M is not R-bar = M: the layers from F on still see text alone."""
    world = World.create(tmp_path, Shape(seed=2, layers=8), TwigShape(fork_layer=2, drop_layer=6))
    prompt = world.prompt(0, 5, IMAGE, 4)
    results = run(world.engine(), *(ask(prompt, str(retained), retained=retained) for retained in (12, 16)))
    assert [result.kept_tokens for result in results] == [16, 16]
    assert results[1].token_ids == world.generate(prompt, 16)
    assert results[0].token_ids != results[1].token_ids
    assert results[0].kept_indices == list(range(16))


def test_the_twigs_default_applies(wild: World) -> None:
    prompt = wild.prompt(3, 5, IMAGE, 4)
    default, named = run(wild.engine(), ask(prompt, "default"), ask(prompt, "named", retained=8))
    assert default.kept_indices == named.kept_indices
    assert default.kept_tokens == kept_count(6, 16, 8, 2, 4) == 8


def test_scores_order_the_kept_indices(wild: World) -> None:
    (result,) = run(wild.engine(), ask(wild.prompt(3, 5, IMAGE, 4), retained=8))
    scores = result.token_scores
    assert scores is not None
    assert len(scores) == result.image_tokens
    dropped = set(range(len(scores))) - set(result.kept_indices)
    assert min(scores[index] for index in result.kept_indices) >= max(scores[index] for index in dropped)


def test_impossible_budgets_name_the_legal_range(wild: World) -> None:
    engine, legal = wild.engine(), legal_range(wild, 16)
    for retained in (-1, legal[0] - 1, legal[-1] + 1, 17, 1000):
        with pytest.raises(RequestError) as raised:
            engine.add(ask(wild.prompt(0, 5, IMAGE, 4), retained=retained))
        assert raised.value.param == "retained_tokens"
        assert retained < 0 or re.search(rf"\b{legal[0]}\b\D+\b{legal[-1]}\b", str(raised.value))
    assert not engine.has_work()


@pytest.mark.parametrize("images", [1, 2, 3])
def test_a_default_that_is_legal_for_one_picture_serves_several(wild: World, images: int) -> None:
    """R-bar 5 is R' = -2/3 rounded up to 0 for one; for two it is impossible, and nobody had asked for it."""
    world = wild.retwig(f"least-{images}", TwigShape(2, 2, 5, retained_tokens=5))
    engine = world.engine(quality={"least": 5})
    assert engine.card.default_retained == engine.card.retained_min == 5
    prompt, least = world.prompt(0, 5, *[IMAGE] * images, 3), legal_range(world, 16 * images)[0]
    request = replace(ask(prompt, "share"), retained_share=engine.card.quality["least"] / 16)
    results = run(engine, ask(prompt, "default"), ask(prompt, "named", retained=least), request)
    assert {result.finish_reason for result in results} <= {"stop", "length"}
    expected = kept_count(6, 16 * images, least, 2, 5)
    assert {result.kept_tokens for result in results} == {expected}


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_what_no_caller_named_is_always_possible(image_tokens: int, layers: int, data: st.DataObject) -> None:
    """Also where M alone is legal: a share of 0.5 of one token between layers 4 and 5 of 6 was called 0."""
    fork = data.draw(st.integers(0, layers - 1))
    place = layers, image_tokens, fork, data.draw(st.integers(fork + 1, layers))
    retained = nearest_legal(data.draw(st.integers(0, image_tokens)), *place)
    assert 0 <= kept_budget(retained, *place) <= image_tokens
    share = data.draw(st.floats(0.01, 1.0))
    assert 0 <= kept_budget(share_of(share, *place), *place) <= image_tokens
    assert kept_budget(share_of(0.5, 6, 1, 4, 5), 6, 1, 4, 5) == 1
