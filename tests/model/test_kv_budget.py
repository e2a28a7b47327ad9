"""Engines under a KV budget: the same answers, never more memory than allowed, and clear refusals."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from model.engine import Engine, EngineConfig, EngineStats
from model.generation import Prompt
from model.memory import kv_tokens, rounded
from model.request import Request, RequestError
from model.vision import Sight
from tests.model.harness import IMAGE, Trace, World, ask, drive, run

NEW, MAX_NEW = 12, 60


def crowd(world: World) -> list[Request]:
    """Pruned and not, one picture and three, short and long: eight that all differ in what they take."""
    layouts: list[tuple[int | str, ...]] = [(5, IMAGE, 4), (3,), (IMAGE, 2, IMAGE, IMAGE), (30, IMAGE)]
    return [
        ask(
            world.prompt(seed, *layouts[seed % 4]),
            f"r{seed}",
            max_tokens=MAX_NEW if seed % 3 == 0 else NEW,
            retained=None if seed % 2 else world.shape.visual_tokens * layouts[seed % 4].count(IMAGE),
            speculation=seed % 5 != 4,
        )
        for seed in range(8)
    ]


def largest_bytes(world: World) -> int:
    """The least budget under which each of the crowd can run."""
    engine = world.engine()
    return max(engine._memory.least_bytes(engine._admission.prompt(request).kv) for request in crowd(world))


@pytest.mark.parametrize("times", [1.0, 1.9, 4.0])
def test_answers_are_the_same_and_memory_stays_in_bounds(tame: World, times: float) -> None:
    """At the least budget only one long request runs at a time; nobody is lost, nobody overtakes."""
    expected = {name: trace.result.token_ids for name, trace in drive(tame.engine(), crowd(tame)).items()}
    limit = int(times * largest_bytes(tame))
    engine = tame.engine(kv_cache_bytes=limit)
    seen: list[EngineStats] = []

    def look(_round: int, _traces: dict[str, Trace]) -> None:
        seen.append(engine.stats())
        assert seen[-1].kv_bytes_allocated <= limit == seen[-1].kv_bytes_capacity
        assert seen[-1].kv_bytes_used <= seen[-1].kv_bytes_allocated or not seen[-1].running

    traces = drive(engine, crowd(tame), before_round=look)
    assert {name: trace.result.token_ids for name, trace in traces.items()} == expected
    assert any(stats.waiting and stats.batch_size for stats in seen), "nobody ever had to wait"
    assert max(stats.batch_size for stats in seen) > 1
    assert (engine.stats().kv_bytes_used, engine.stats().free_slots) == (0, 8)


def test_no_slab_grows_behind_the_budget(tame: World, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tame.engine(kv_cache_bytes=3 * largest_bytes(tame))
    for group in engine._runner.cache.groups:
        reserve = group.reserve
        monkeypatch.setattr(group, "reserve", lambda tokens, g=group, r=reserve: _no_growth(g, r, tokens))
    drive(engine, crowd(tame))


def _no_growth(group: object, reserve: object, tokens: int) -> None:
    assert tokens <= group.capacity  # type: ignore[attr-defined]
    reserve(tokens)  # type: ignore[operator]


@pytest.mark.parametrize("retained", [8, 16])
@pytest.mark.parametrize("with_twig", [True, False])
def test_computed_bytes_are_those_of_the_tensors(wild: World, retained: int, with_twig: bool) -> None:
    """One sequence alone, in slabs made for it: what `bench --memory` computes is what torch allocates."""
    engine = wild.engine(twig=with_twig, max_batch=1, kv_cache_bytes=10**8)
    request = ask(wild.prompt(1, 5, IMAGE, 4), retained=retained if with_twig else 16, max_tokens=NEW)
    result = run(engine, request)[0]
    kept = result.kept_tokens
    tokens = kv_tokens(result.prompt_tokens - result.image_tokens, result.image_tokens, kept, NEW)
    computed = engine._memory.shape.by_group(rounded(tokens))
    assert tuple(group.slab.nbytes for group in engine._runner.cache.groups) == tuple(computed)
    assert engine.stats().kv_bytes_allocated == sum(computed)


def test_what_can_never_fit_is_refused_by_name(tame: World) -> None:
    engine = tame.engine(kv_cache_bytes=200_000)
    with pytest.raises(RequestError, match=r"need \d+ bytes of KV cache, but there are 200000") as raised:
        engine.add(ask(tame.prompt(1, 5, IMAGE, 4), max_tokens=200))
    assert raised.value.param == "max_tokens"
    with pytest.raises(RequestError, match="200000") as raised:
        engine.add(ask(tame.prompt(1, 5, IMAGE, IMAGE, 150), max_tokens=2, retained=32))
    assert raised.value.param == "prompt"
    assert not engine.has_work()
    run(engine, ask(tame.prompt(1, 5, IMAGE, 4), max_tokens=4))


def test_a_budget_without_room_for_a_picture_stops_the_engine(tame: World) -> None:
    with pytest.raises(ValueError, match=r"kv_cache_bytes 1000 is too little: a picture takes \d+"):
        tame.engine(kv_cache_bytes=1000)


def test_aborting_the_one_that_waits_for_memory_lets_the_next_in(tame: World) -> None:
    engine: Engine = tame.engine(kv_cache_bytes=largest_bytes(tame))
    long = [ask(tame.prompt(1, IMAGE, 2, IMAGE, IMAGE), name, max_tokens=60, retained=48) for name in "ab"]
    short = ask(tame.prompt(2, 3), "c", max_tokens=2)

    def stop_b(number: int, _traces: dict[str, Trace]) -> None:
        if number == 3:
            assert engine.stats().waiting == 2
            assert engine.stats().free_slots == 0
            engine.abort("b")

    traces = drive(engine, [*long, short], before_round=stop_b)
    assert {name: trace.result.finish_reason for name, trace in traces.items()} == {
        "a": traces["a"].result.finish_reason,
        "b": "abort",
        "c": traces["c"].result.finish_reason,
    }
    assert traces["c"].result.token_ids


def test_what_waits_for_memory_waits_in_the_queue(tame: World) -> None:
    """Two that were seen ahead of their turn counted the wait for memory as their prefill."""
    now = [0.0]
    limit = int(1.2 * largest_bytes(tame))
    engine = Engine.from_pretrained(
        tame.base_path,
        tame.twig_path,
        dtype="float32",
        config=EngineConfig(kv_cache_bytes=limit, max_batch=4, governor=False),
        clock=lambda: now[0],
    )
    runner, encode = engine._runner, engine._runner.encode_together

    def slow(prompts: Sequence[Prompt]) -> list[Sight]:
        now[0] += 0.25
        return encode(prompts)

    runner.encode_together = slow  # type: ignore[method-assign]

    def tick(_round: int, _traces: dict[str, Trace]) -> None:
        now[0] += 1.0

    parts = (IMAGE, 2, IMAGE, IMAGE)
    options = {"max_tokens": 60, "retained": 48, "ignore_eos": True, "speculation": False}
    first, *others = (ask(tame.prompt(seed, *parts), str(seed), **options) for seed in range(3))
    traces = drive(engine, {0: [first], 1: others}, before_round=tick)
    results = [traces[name].result for name in "012"]
    assert [result.encode_s for result in results] == [0.0, 0.25, 0.25]
    assert [result.prefill_s for result in results] == [0.0] * 3
    for result in results:
        assert result.ttft_s == result.queue_s + result.encode_s
    assert results[1].queue_s >= 59.0


def test_next_logits_stay_in_the_budget(tame: World) -> None:
    """Room was made for max_tokens, however long the answer so far: the slabs grew behind the budget."""
    prompt = tame.prompt(1, 20, IMAGE, 4)

    def asked(answer: int) -> Request:
        return ask(prompt, max_tokens=1, retained=8, resume=[20 + index % 50 for index in range(answer)])

    plain = tame.engine(governor=False)
    fitting = plain._admission.prompt(ask(prompt, max_tokens=100, retained=8)).kv
    engine = tame.engine(kv_cache_bytes=plain._memory.least_bytes(fitting), max_batch=4)
    limit = engine.stats().kv_bytes_capacity
    assert torch.equal(engine.next_logits(asked(90)), plain.next_logits(asked(90)))
    assert engine.stats().kv_bytes_allocated <= limit
    with pytest.raises(RequestError, match=f"there are {limit}") as raised:
        engine.next_logits(asked(180))
    assert raised.value.param == "resume_token_ids"
    assert engine.stats().kv_bytes_allocated <= limit
