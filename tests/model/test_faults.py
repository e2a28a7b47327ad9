"""A crash inside a round reaches every waiter, and the engine works on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import model.cache
from model.engine import Engine
from model.request import Request
from tests.model.harness import IMAGE, Trace, World, ask, drive, run


def crowd(world: World, first: int = 0) -> list[Request]:
    return [
        ask(world.prompt(seed, 5, IMAGE, 4), f"r{seed}", retained=8, max_tokens=12)
        for seed in range(first, first + 6)
    ]


def fails_on_call(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, but its call of that number (from 0) raises."""
    calls = iter(range(10**9))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            raise RuntimeError("the device is on fire")
        return function(*args, **kwargs)

    return wrapped


@pytest.fixture
def engine(tame: World) -> Engine:
    return tame.engine(max_batch=4)


def sound(world: World, engine: Engine) -> None:
    """After the fault the engine answers as a new one does."""
    engine.check_integrity()
    again, fresh = (run(any_engine, *crowd(world, 10)) for any_engine in (engine, world.engine(max_batch=4)))
    assert [result.token_ids for result in again] == [result.token_ids for result in fresh]
    assert [result.accepted_tokens for result in again] == [result.accepted_tokens for result in fresh]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_round_that_fails_ends_all_that_run(
    tame: World, engine: Engine, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Four run and two wait: the four end with the error, the two are answered."""
    expected = {name: trace.result for name, trace in drive(tame.engine(max_batch=4), crowd(tame)).items()}
    monkeypatch.setattr(engine._runner, "round", fails_on_call(number, engine._runner.round))
    traces = drive(engine, crowd(tame))
    failed = {name for name, trace in traces.items() if trace.result.finish_reason == "error"}
    assert failed
    assert failed <= {"r0", "r1", "r2", "r3"} or number
    for name, trace in traces.items():
        if name in failed:
            assert "on fire" in (trace.result.error or "")
            assert trace.token_ids == expected[name].token_ids[: len(trace.token_ids)]
        else:
            assert trace.result.token_ids == expected[name].token_ids
            assert trace.result.error is None
    sound(tame, engine)


@pytest.mark.parametrize("method", ["encode", "prefill"])
def test_a_prefill_that_fails_ends_that_request_alone(
    tame: World, engine: Engine, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    # Seen together all fail; then each is seen alone.
    monkeypatch.setattr(engine._runner, "encode_together", fails_on_call(0, engine._runner.encode_together))
    monkeypatch.setattr(engine._runner, method, fails_on_call(2, getattr(engine._runner, method)))
    traces = drive(engine, crowd(tame))
    reasons = {name: trace.result.finish_reason for name, trace in traces.items()}
    assert [name for name, reason in reasons.items() if reason == "error"] == ["r2"]
    sound(tame, engine)


@pytest.mark.parametrize("call", [0, 3, 11, 26])
def test_a_layer_that_fails_anywhere(
    tame: World, engine: Engine, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """In a prefill (the first 12 or so calls) or in a round, between two writes to the cache."""
    stack = type(engine._runner.vlm.middle)
    monkeypatch.setattr(stack, "__call__", fails_on_call(call, stack.__call__))
    traces = drive(engine, crowd(tame))
    errors = [trace.result.error for trace in traces.values() if trace.result.finish_reason == "error"]
    assert errors
    assert all("on fire" in str(error) for error in errors)
    monkeypatch.undo()
    sound(tame, engine)


def test_generate_returns_the_failed_with_the_rest(
    tame: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine._runner, "prefill", fails_on_call(0, engine._runner.prefill))
    results = engine.generate(crowd(tame))
    assert [result.finish_reason == "error" for result in results] == [True] + [False] * 5


@pytest.mark.parametrize("group", [0, 1, 2])
@pytest.mark.parametrize("running", [False, True])
def test_memory_that_cannot_be_had_ends_the_first_in_line_alone(
    tame: World, monkeypatch: pytest.MonkeyPatch, group: int, running: bool
) -> None:
    """It escaped from `step`, the request stayed first in line, and the engine took the slabs that it no
    longer had for its own: every later request failed for want of a slot."""

    def asked(name: str, max_tokens: int) -> Request:
        return ask(tame.prompt(1, 5, IMAGE, 4), name, max_tokens=max_tokens, retained=8, ignore_eos=True)

    plain = tame.engine()
    big = plain._memory.least_bytes(plain._admission.prompt(asked("big", 150)).kv)
    engine = tame.engine(kv_cache_bytes=3 * big, max_batch=3)
    expected = [result.token_ids for result in run(engine, asked("a", 4), asked("b", 30))]
    full = fails_on_call(group, model.cache.zeros)

    def fail(index: int, _traces: dict[str, Trace]) -> None:
        monkeypatch.setattr(model.cache, "zeros", full if index == 1 else unharmed)

    unharmed = model.cache.zeros
    first = [asked("b", 30)] if running else [asked("a", 1)]
    traces = drive(engine, {0: first, 1: [asked("big", 150), asked("a2", 4)]}, before_round=fail)
    reasons = {name: trace.result.finish_reason for name, trace in traces.items()}
    assert reasons.pop("big") == "error"
    assert set(reasons.values()) == {"length"}
    assert "on fire" in str(traces["big"].result.error)
    assert traces["a2"].token_ids == expected[0]
    assert not running or traces["b"].token_ids == expected[1]
    assert [result.token_ids for result in run(engine, asked("a", 4), asked("b", 30))] == expected


def test_an_interrupt_leaves_an_engine_without_work(
    tame: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After Ctrl-C `generate` found the last call's requests in the engine and refused every other one."""
    calls, work = iter(range(100)), engine._runner.round

    def interrupted(rows: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return work(rows)

    monkeypatch.setattr(engine._runner, "round", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(crowd(tame))
    assert not engine.has_work()
    assert {result.finish_reason for result in engine.generate(crowd(tame))} <= {"stop", "length"}
    sound(tame, engine)
