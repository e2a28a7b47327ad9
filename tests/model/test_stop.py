"""Stop strings: the text ends before the first of them, in whatever rounds and resumptions."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.detokenize import Detokenizer
from model.generation import Generation, Prompt, Times
from model.request import RequestError, Result, StepOutput
from model.stops import StopStrings
from tests.model.harness import IMAGE, World, ask, drive, run
from tests.model.tiny import build_tokenizer

bounded = settings(max_examples=150)
TOKENIZER = build_tokenizer()
EOS = TOKENIZER.eos_token_id


def decode(tokens: list[int]) -> str:
    return TOKENIZER.decode(tokens, skip_special_tokens=True)


# --- the reference -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ending:
    text: str
    token_ids: list[int]
    finish_reason: str


def cut(text: str, stops: list[str]) -> str | None:
    """The text before the stop string that ends first; before the longest, where several end there."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return None


def expected(tokens: list[int], stops: list[str], eos: int | None = EOS) -> Ending:
    """Everything is generated first, then searched."""
    detokenizer, stable = Detokenizer(decode), ""
    for count, token in enumerate(tokens, 1):
        stable += detokenizer.push([token])
        if (text := cut(stable, stops)) is not None:
            return Ending(text, tokens[:count], "stop")
        if token == eos:
            tokens = tokens[:count]
            break
    whole = decode(tokens)
    text = cut(whole, stops)
    reason = "length" if text is None and tokens[-1:] != [eos] else "stop"
    return Ending(whole if text is None else text, tokens, reason)


# --- a generation fed by hand ------------------------------------------------------------------------


def play(tokens: list[int], stops: list[str], lengths: list[int], resume: int = 0) -> tuple[str, Result]:
    """Rounds of these lengths (the last one repeated) after so many resumed tokens -> (deltas, result)."""
    prompt = Prompt([1], [], 0, False, 0.0, False, resume_token_ids=tuple(tokens[:resume]))
    generation = Generation(
        "r",
        prompt,
        max_tokens=len(tokens),
        eos=frozenset({EOS}),
        detokenizer=Detokenizer(decode),
        times=Times(added=0.0),
        stops=StopStrings(stops),
    )
    outputs = [StepOutput("r")]
    turn = 0
    while generation.finish_reason is None:
        begin, width = len(generation.tokens), lengths[min(turn, len(lengths) - 1)]
        outputs.append(StepOutput("r"))
        generation.emit(tokens[begin : begin + width], width - 1, outputs[-1], now=1.0)
        turn += 1
    generation.finish(outputs[-1], now=2.0)
    result = outputs[-1].result
    assert result is not None
    assert tokens[:resume] + [token for out in outputs for token in out.token_ids] == result.token_ids
    assert sum(flag for out in outputs for flag in out.drafted) == result.accepted_tokens
    assert all(len(out.pieces) == len(out.token_ids) for out in outputs)
    assert all("".join(out.pieces) == out.text for out in outputs if out.token_ids)
    return "".join(out.text for out in outputs), result


pieces = st.sampled_from(["a", "b", "ab", "ba", "aa", " ", "é", "日", "🌍", "the red cat", "</s>", "\ufffd"])
texts = st.lists(pieces, max_size=9).map("".join)
token_lists = st.one_of(
    texts.map(lambda text: TOKENIZER.encode(text, add_special_tokens=False)),
    st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=14),
).filter(len)
loose = st.lists(st.text("ab é日🌍t\ufffd", min_size=1, max_size=4), min_size=1, max_size=4)


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[int], list[str]]:
    """Half of the stop strings are cut out of the text itself, so that they are met."""
    tokens = draw(token_lists)
    text, stops = decode(tokens), draw(loose)
    if text:
        begin = draw(st.integers(0, len(text) - 1))
        stops.append(text[begin : begin + draw(st.integers(1, 6))])
    return tokens, draw(st.permutations(stops))


@bounded
@given(answers(), st.lists(st.integers(1, 6), min_size=1, max_size=5))
@example((TOKENIZER.encode("abab"), ["bab", "a"]), [4])
@example((TOKENIZER.encode("aaab"), ["aab"]), [1])
def test_any_rounds_end_where_a_search_of_the_whole_text_does(
    answer: tuple[list[int], list[str]], lengths: list[int]
) -> None:
    tokens, stops = answer
    text, result = play(tokens, stops, lengths)
    end = expected(tokens, stops)
    assert Ending(result.text, result.token_ids, result.finish_reason) == end
    assert text == result.text


@bounded
@given(answers(), st.integers(1, 6))
def test_resumed_at_each_cut_it_goes_on_where_the_client_is(
    answer: tuple[list[int], list[str]], length: int
) -> None:
    """The client has what the delivered tokens gave out; the rest is exactly what is missing."""
    tokens, stops = answer
    whole = expected(tokens, stops)
    for resume in range(len(whole.token_ids)):
        delivered, detokenizer = StopStrings(stops), Detokenizer(decode)
        for token in whole.token_ids[:resume]:
            delivered.push(detokenizer.push([token]))
        rest, result = play(tokens, stops, [length], resume)
        assert delivered.text + rest == result.text == whole.text
        assert (result.token_ids, result.finish_reason) == (whole.token_ids, whole.finish_reason)


@pytest.mark.parametrize("extra", [0, 2])
def test_resumed_past_its_stop_it_ends_at_once(extra: int) -> None:
    """The first worker died between the last tokens and the end."""
    tokens = TOKENIZER.encode("the red cat sits at the top")
    end = expected(tokens, ["cat"])
    assert end.finish_reason == "stop"
    assert len(end.token_ids) + extra <= len(tokens)
    delivered = tuple(tokens[: len(end.token_ids) + extra])
    prompt = Prompt([1], [], 0, False, 0.0, False, resume_token_ids=delivered)
    generation = Generation(
        "r", prompt, 99, frozenset(), Detokenizer(decode), Times(0.0), stops=StopStrings(["cat"])
    )
    assert (generation.finish_reason, generation.tokens) == ("stop", end.token_ids)
    generation.finish(output := StepOutput("r"), now=1.0)
    assert output.text == ""
    assert output.result is not None
    assert output.result.text == "the red "


# --- the text alone ----------------------------------------------------------------------------------


@bounded
@given(
    st.text("ab", max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.data(),
)
def test_nothing_is_given_out_too_early_or_kept_too_long(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    """After every piece: all but the longest end with which a stop string begins."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    scanner, end = StopStrings(stops), cut(text, stops)
    for begin, until in zip([0, *cuts], [*cuts, len(text)], strict=True):
        scanner.push(text[begin:until])
        if scanner.found:
            assert scanner.text == end
            return
        seen = text[:until]
        beginnings = [stop[:size] for stop in stops for size in range(1, len(stop))]
        held = max((len(part) for part in beginnings if seen.endswith(part)), default=0)
        assert scanner.text == seen[: until - held]
    assert end is None
    scanner.release()
    assert scanner.text == text


# --- whole engines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("speculation", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_an_engine_stops_at_any_part_of_its_own_answer(
    tame: World, speculation: bool, temperature: float
) -> None:
    """Several tokens a round, and a resumption at every cut."""
    prompt, engine = tame.prompt(2, 5, IMAGE, 4), tame.engine()
    options = {
        "max_tokens": 14,
        "retained": 8,
        "speculation": speculation,
        "temperature": temperature,
        "seed": 5,
        "ignore_eos": True,
    }
    (whole,) = run(engine, ask(prompt, "whole", **options))
    assert len(whole.text) > 8
    for begin in range(0, len(whole.text) - 3, 3):
        stops = (whole.text[begin : begin + 3], "never met")
        end = expected(whole.token_ids, list(stops), eos=None)
        assert end.finish_reason == "stop"
        requests = [
            ask(prompt, f"{begin} {at}", stop=stops, resume=end.token_ids[:at], **options)
            for at in range(len(end.token_ids) + 1)
        ]
        for at, trace in enumerate(drive(engine, requests).values()):
            result = trace.result
            assert Ending(result.text, result.token_ids, result.finish_reason) == end
            assert trace.token_ids == end.token_ids[at:]


def test_stopping_rows_leave_the_others_alone(tame: World) -> None:
    """Cut in the middle of a round, a row frees its slot and the rest never notice."""
    prompts = [tame.prompt(seed, 5, IMAGE, 4) for seed in range(6)]
    plain = run(tame.engine(), *(ask(p, str(i), max_tokens=14, retained=8) for i, p in enumerate(prompts)))
    stops = [(r.text[len(r.text) // 2 :][:2],) if i % 2 else () for i, r in enumerate(plain)]
    stopped = run(
        tame.engine(max_batch=4),
        *(ask(p, str(i), max_tokens=14, retained=8, stop=stops[i]) for i, p in enumerate(prompts)),
    )
    for before, after, stop in zip(plain, stopped, stops, strict=True):
        if stop:
            end = expected(before.token_ids, list(stop))
            assert Ending(after.text, after.token_ids, after.finish_reason) == end
        else:
            assert (after.token_ids, after.accepted_tokens) == (before.token_ids, before.accepted_tokens)


@pytest.mark.parametrize(
    "stop", ["word", ("",), ("x" * 257,), ("x",) * 17, (1,), (b"x",), {"x"}], ids=lambda stop: str(stop)[:12]
)
def test_stop_strings_that_cannot_be(tame: World, stop: object) -> None:
    with pytest.raises(RequestError, match="stop") as raised:
        tame.engine().add(ask(tame.prompt(0, 3), stop=stop))
    assert raised.value.param == "stop"


def test_stop_strings_at_the_limits(tame: World) -> None:
    engine = tame.engine()
    assert (
        run(engine, ask(tame.prompt(0, 3), max_tokens=2, stop=["x" * 256] * 16))[0].finish_reason == "length"
    )


def test_without_a_tokenizer_stop_strings_are_refused(tame: World) -> None:
    engine = tame.engine()
    engine._adapter.decode = None
    with pytest.raises(RequestError, match="tokenizer"):
        engine.add(ask(tame.prompt(0, 3), stop=("x",)))
