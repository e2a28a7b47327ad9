"""A batch is eight solitary runs: tokens, kept indices and the accounting of drafts, in any order."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from model.request import Request, Result
from tests.model.harness import IMAGE, Prompt, World, ask, drive, run

# What may differ between a batch and a solitary run, or between two runs.
TIMES = {"queue_s", "encode_s", "prefill_s", "decode_s", "ttft_s"}
PARTS = [
    (5, IMAGE, 4),
    (8,),
    (IMAGE, 16),
    (3, IMAGE, 2, IMAGE, 4),
    (2, IMAGE, 1),
    (30, IMAGE, 3),
    (1,),
    (4, IMAGE),
]
RETAINED = [8, None, 16, None, 6, 9, None, 10]


def facts(result: Result) -> dict[str, object]:
    """Everything but times; scores rounded, since the order of sums differs between shapes."""
    known = {name: value for name, value in asdict(result).items() if name not in TIMES}
    scores = known.pop("token_scores")
    return known | {"token_scores": scores and [round(score, 4) for score in scores]}


def prompts(world: World) -> list[Prompt]:
    return [world.prompt(40 + index, *parts) for index, parts in enumerate(PARTS)]


def mixed(world: World) -> list[Request]:
    """Eight requests that differ in everything that may differ."""
    return [
        ask(
            prompt,
            f"r{index}",
            max_tokens=6 + 3 * index,
            retained=RETAINED[index],
            speculation=index % 3 != 1,
            ignore_eos=index == 4,
        )
        for index, prompt in enumerate(prompts(world))
    ]


@pytest.fixture(scope="module")
def alone(world: World) -> dict[str, dict[str, object]]:
    engine = world.engine(max_batch=1)
    return {str(request.request_id): facts(run(engine, request)[0]) for request in mixed(world)}


def test_batch_of_eight_equals_eight_batches_of_one(
    world: World, alone: dict[str, dict[str, object]]
) -> None:
    together = run(world.engine(), *mixed(world))
    for result in together:
        assert facts(result) == alone[result.request_id]
    assert sum(result.accepted_tokens for result in together) > 0


@pytest.mark.parametrize("max_batch", [1, 2, 3, 5])
def test_smaller_batches_only_queue(tame: World, max_batch: int) -> None:
    wide = {r.request_id: facts(r) for r in run(tame.engine(), *mixed(tame))}
    narrow = {r.request_id: facts(r) for r in run(tame.engine(max_batch=max_batch), *mixed(tame))}
    assert narrow == wide


@pytest.mark.parametrize("gap", [1, 2, 5])
def test_staggered_arrivals(world: World, alone: dict[str, dict[str, object]], gap: int) -> None:
    arrivals = {gap * index: [request] for index, request in enumerate(mixed(world))}
    for name, trace in drive(world.engine(max_batch=4), arrivals).items():
        assert facts(trace.result) == alone[name]


def test_arrival_order(world: World, alone: dict[str, dict[str, object]]) -> None:
    for name, trace in drive(world.engine(max_batch=3), mixed(world)[::-1]).items():
        assert facts(trace.result) == alone[name]


def test_a_batch_never_exceeds_its_limit_and_reports_itself(tame: World) -> None:
    engine = tame.engine(max_batch=3)
    seen = []

    def look(_round: int, _traces: object) -> None:
        stats = engine.stats()
        seen.append(stats)
        assert stats.running + stats.waiting <= 8
        assert stats.running <= 3
        assert stats.free_slots <= 3
        assert 0 <= stats.kv_bytes_used <= stats.kv_bytes_capacity

    drive(engine, mixed(tame), before_round=look)
    assert max(stats.batch_size for stats in seen) == 3
    assert seen[0].waiting == 8
    last = engine.stats()
    assert (last.running, last.waiting, last.kv_bytes_used) == (0, 0, 0)


def test_first_come_first_served(tame: World) -> None:
    """With one slot the requests finish in the order of their arrival."""
    finished = []
    engine = tame.engine(max_batch=1)
    for request in mixed(tame)[:4]:
        engine.add(request)
    while engine.has_work():
        finished += [output.request_id for output in engine.step() if output.result]
    assert finished == ["r0", "r1", "r2", "r3"]


def test_generate_keeps_the_order_of_its_requests(tame: World) -> None:
    requests = mixed(tame)
    results = tame.engine(max_batch=2).generate(requests)
    assert [result.request_id for result in results] == [request.request_id for request in requests]


def test_rows_of_a_large_batch_go_on_drafting(tame: World) -> None:
    """A draft that was accepted whole leaves the twig one token behind; with 33 rows that was too far."""
    prompt = tame.prompt(1, 5, IMAGE, 3)
    (one,) = run(tame.engine(), ask(prompt, ignore_eos=True))
    many = run(tame.engine(max_batch=40), *[ask(prompt, f"r{row}", ignore_eos=True) for row in range(40)])
    assert {result.draft_tokens for result in many} == {one.draft_tokens}
