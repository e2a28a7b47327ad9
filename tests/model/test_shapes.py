"""Whole engines over drawn shapes, budgets and arrival orders, against the reference and solo runs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.request import Request, Result
from tests.model.harness import IMAGE, Trace, World, ask, drive, run
from tests.model.reference import kept_count
from tests.model.tiny import Shape, TwigShape

POOL = 10


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Shape, TwigShape]:
    layers = draw(st.integers(2, 6))
    fork = draw(st.integers(0, layers - 1))
    drop = draw(st.integers(fork + 1, layers))
    kv_heads = draw(st.sampled_from([1, 2, 4]))
    shape = Shape(
        seed=draw(st.integers(0, 99)),
        layers=layers,
        heads=kv_heads * draw(st.integers(1, 2)),
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([8, 16])),
        grid=draw(st.integers(2, 6)),
        padded_rows=draw(st.integers(0, 9)),
        upper_from=fork,
        upper_scale=draw(st.sampled_from([0.2, 1.0])),
    )
    twig = TwigShape(
        fork,
        draw(st.integers(1, min(3, layers - fork))),
        drop,
        retained_tokens=draw(st.sampled_from(budgets(shape, fork, drop))),
        draft_tokens=draw(st.integers(1, 6)),
        draft_threshold=draw(st.sampled_from([0.0, 0.3, 0.7])),
    )
    return shape, twig


def budgets(shape: Shape, fork: int, drop: int) -> list[int]:
    """Every legal R-bar; M itself (pruning off) is always one of them."""
    count = shape.visual_tokens
    legal = [r for r in range(count) if 0 <= kept_count(shape.layers, count, r, fork, drop) <= count]
    return [*legal, count]


@settings(max_examples=12)
@given(worlds(), st.data())
def test_any_shape_equals_the_reference(drawn: tuple[Shape, TwigShape], data: st.DataObject) -> None:
    shape, twig = drawn
    with tempfile.TemporaryDirectory() as directory:
        world = World.create(Path(directory), shape, twig)
        reference, engine = world.reference(), world.engine()
        layouts = data.draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=3))
        prompts = [world.prompt(seed, *_layout(*layout)) for seed, layout in enumerate(layouts)]
        results = run(
            engine, *(ask(prompt, str(index), max_tokens=9) for index, prompt in enumerate(prompts))
        )
    for prompt, result in zip(prompts, results, strict=True):
        expected = reference.generate(
            prompt.ids, prompt.pixels, retained=twig.retained_tokens, max_tokens=9, speculation=True
        )
        assert result.token_ids == expected.token_ids
        assert result.kept_indices == expected.indices
        assert (result.draft_tokens, result.accepted_tokens) == (
            expected.draft_tokens,
            expected.accepted_tokens,
        )


def _layout(before: int, after: int) -> tuple[int | str, ...]:
    return (before, IMAGE, after)


# (parts of the prompt, R-bar; None: the twig's default)
KINDS = [
    ((5, IMAGE, 4), None),
    ((7,), None),
    ((IMAGE, 2), 9),
    ((2, IMAGE, IMAGE, 1), None),
    ((3, IMAGE), 7),
]


def pool(world: World) -> list[Request]:
    """Ten different requests, text-only and two-image ones among them."""
    requests = []
    for index in range(POOL):
        parts, retained = KINDS[index % len(KINDS)]
        prompt = world.prompt(70 + index, *parts)
        limits = {"max_tokens": 1 + 2 * index, "retained": retained, "speculation": index % 4 != 3}
        requests.append(ask(prompt, f"r{index}", **limits))
    return requests


@pytest.fixture(scope="module")
def solo(tame: World) -> dict[str, Result]:
    engine = tame.engine(max_batch=1)
    return {str(request.request_id): run(engine, request)[0] for request in pool(tame)}


names = st.integers(0, POOL - 1)


@settings(max_examples=25)
@given(
    arrivals=st.dictionaries(names, st.integers(0, 12), min_size=1),
    aborts=st.dictionaries(names, st.integers(0, 15), max_size=4),
    max_batch=st.integers(1, 5),
)
def test_any_history_of_arrivals_and_aborts(
    tame: World, solo: dict[str, Result], arrivals: dict[int, int], aborts: dict[int, int], max_batch: int
) -> None:
    """Who is not aborted gets his solo answer; who is gets a beginning of it; `drive` checks the rest."""
    requests, engine = pool(tame), tame.engine(max_batch=max_batch)
    schedule: dict[int, list[Request]] = {}
    for index, at in arrivals.items():
        schedule.setdefault(at, []).append(requests[index])

    def stop(number: int, _traces: dict[str, Trace]) -> None:
        for index, at in aborts.items():
            if at == number:
                engine.abort(f"r{index}")

    traces = drive(engine, schedule, before_round=stop)
    assert len(traces) == len(arrivals)
    for name, trace in traces.items():
        alone = solo[name]
        if trace.result.finish_reason == "abort":
            assert trace.token_ids == alone.token_ids[: len(trace.token_ids)]
        else:
            assert trace.result.token_ids == alone.token_ids
            assert trace.result.kept_indices == alone.kept_indices
            assert trace.result.draft_tokens == alone.draft_tokens
            assert trace.result.accepted_per_position == alone.accepted_per_position
