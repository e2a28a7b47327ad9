"""A request's life: aborted in any phase, resumed at any cut, its text in whole characters."""

from __future__ import annotations

import pytest

from model.request import Request
from tests.model.harness import IMAGE, Trace, World, ask, drive, run


def crowd(world: World) -> list[Request]:
    """Six requests for an engine with four slots; the last two wait."""
    return [ask(world.prompt(seed, 5, IMAGE, 4), f"r{seed}", retained=8, max_tokens=20) for seed in range(6)]


# phase -> (the round before which, and whom) to abort.
PHASES = {
    "waiting, before any round": (0, "r5"),
    "about to start": (0, "r0"),
    "waiting, while others run": (1, "r5"),
    "after its prefill": (1, "r1"),
    "in the middle": (3, "r2"),
}


@pytest.mark.parametrize("phase", PHASES)
def test_abort(tame: World, phase: str) -> None:
    """One terminal output, an empty cache (both asserted by drive), and the others never notice."""
    when, victim = PHASES[phase]
    expected = drive(tame.engine(max_batch=4), crowd(tame))
    engine = tame.engine(max_batch=4)

    def stop(index: int, _traces: dict[str, Trace]) -> None:
        if index == when:
            engine.abort(victim)

    traces = drive(engine, crowd(tame), before_round=stop)
    for name, trace in traces.items():
        if name == victim:
            assert trace.result.finish_reason == "abort"
            assert expected[name].token_ids[: len(trace.token_ids)] == trace.token_ids
            assert len(trace.token_ids) < 20
        else:
            assert trace.token_ids == expected[name].token_ids
            assert trace.result.accepted_tokens == expected[name].result.accepted_tokens


def test_abort_everything_at_once(tame: World) -> None:
    engine = tame.engine(max_batch=4)

    def stop(index: int, traces: dict[str, Trace]) -> None:
        for name in traces if index == 2 else ():
            engine.abort(name)

    traces = drive(engine, crowd(tame), before_round=stop)
    assert {trace.result.finish_reason for trace in traces.values()} == {"abort"}
    assert run(engine, ask(tame.prompt(0, 5, IMAGE, 4), retained=16, speculation=False))[0].token_ids


def test_abort_after_the_end_and_of_a_stranger_is_nothing(tame: World) -> None:
    engine = tame.engine()
    request = ask(tame.prompt(0, 5, IMAGE, 4), "r0", max_tokens=3)
    run(engine, request)
    engine.abort("r0")
    engine.abort("never seen")
    assert not engine.has_work()
    assert run(engine, request)[0].finish_reason == "length"


def test_abort_twice_ends_once(tame: World) -> None:
    engine = tame.engine()

    def stop(index: int, _traces: dict[str, Trace]) -> None:
        if index == 1:
            engine.abort("r0")
            engine.abort("r0")

    drive(engine, crowd(tame), before_round=stop)


@pytest.mark.parametrize("speculation", [False, True])
@pytest.mark.parametrize("retained", [16, 8])
def test_resume_at_every_cut(tame: World, retained: int, speculation: bool) -> None:
    """A reclaimed job continues after the tokens its client has: nothing repeated, nothing missing.

    Where its client had them all, the result did not tell what was kept: the token map came out empty.
    """
    engine = tame.engine()
    for seed in (0, 3):
        prompt = tame.prompt(seed, 5, IMAGE, 4)
        options = {"max_tokens": 14, "retained": retained, "speculation": speculation}
        (whole,) = run(engine, ask(prompt, "whole", **options))
        cuts = [
            ask(prompt, f"cut {cut}", resume=whole.token_ids[:cut], **options)
            for cut in range(len(whole.token_ids) + 1)
        ]
        for cut, trace in enumerate(drive(engine, cuts).values()):
            assert trace.result.token_ids == whole.token_ids
            assert trace.result.text == whole.text
            assert trace.result.finish_reason == whole.finish_reason
            assert trace.result.kept_indices == whole.kept_indices
            assert (trace.result.token_scores is None) == (whole.token_scores is None)
            assert trace.token_ids == whole.token_ids[cut:]


def test_resumed_text_continues_where_the_client_stopped(tame: World) -> None:
    """Deltas delivered before the cut and after it join to the whole text."""
    prompt, engine = tame.prompt(2, 5, IMAGE, 4), tame.engine()
    (first,) = drive(engine, [ask(prompt, "first", max_tokens=14, retained=8)]).values()
    for rounds in range(1, len(first.outputs)):
        delivered = first.outputs[:rounds]
        tokens = [token for output in delivered for token in output.token_ids]
        (rest,) = drive(engine, [ask(prompt, "rest", max_tokens=14, retained=8, resume=tokens)]).values()
        assert "".join(output.text for output in delivered) + rest.text == first.result.text


@pytest.mark.parametrize("excess", [0, 1])
def test_resumed_past_the_limit_finishes_at_once(tame: World, excess: int) -> None:
    tokens = [20, 21, 22, 23][: 3 + excess]
    (trace,) = drive(tame.engine(), [ask(tame.prompt(0, 5, IMAGE, 4), max_tokens=3, resume=tokens)]).values()
    assert trace.result.finish_reason == "length"
    assert trace.result.token_ids == tokens
    assert trace.token_ids == []


def test_resumed_past_eos_finishes_at_once(tame: World) -> None:
    tokens = [20, 21, tame.tokenizer.eos_token_id]
    (trace,) = drive(tame.engine(), [ask(tame.prompt(0, 5, IMAGE, 4), resume=tokens)]).values()
    assert trace.result.finish_reason == "stop"
    assert trace.result.token_ids == tokens
    assert trace.token_ids == []


def test_text_is_the_tokenizers(tame: World) -> None:
    """Also where a random model emits bytes that are no character."""
    requests = [
        ask(tame.prompt(seed, 5, IMAGE, 4), str(seed), max_tokens=30, retained=8) for seed in range(8)
    ]
    for result in run(tame.engine(), *requests):
        assert result.text == tame.tokenizer.decode(result.token_ids, skip_special_tokens=True)


def test_an_id_is_made_where_none_is_given(tame: World) -> None:
    engine, prompt = tame.engine(), tame.prompt(0, 5, IMAGE, 4)
    names = []
    for _ in range(2):
        request = ask(prompt, max_tokens=2)
        request.request_id = None
        names.append(engine.add(request))
    assert len(set(names)) == 2
    finished = []
    while engine.has_work():
        finished += [output.request_id for output in engine.step() if output.result]
    assert sorted(finished) == sorted(names)
