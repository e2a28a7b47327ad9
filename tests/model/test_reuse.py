"""What is remembered of pictures: bounded, counted, and never seen in an answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.engine import Engine
from model.request import Request
from model.reuse import Reuse
from service.settings import WorkerSettings
from service.worker import load_engine
from tests.model.harness import IMAGE, Prompt, World, ask, drive, run
from tests.model.test_batching import facts

IMAGE_ID = 4


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60)), max_size=60), st.integers(0, 100))
def test_never_above_its_limit(puts: list[tuple[int, int]], limit: int) -> None:
    held: Reuse[int] = Reuse(limit)
    for number, weight in puts:
        held.put(bytes([number]), number, weight)
        assert 0 <= held.held_bytes <= limit
        assert (held.get(bytes([number])) == number) == (
            weight <= limit or held.get(bytes([number])) is not None
        )


def test_the_longest_unused_goes_first() -> None:
    held: Reuse[str] = Reuse(30)
    for name in "abc":
        held.put(name.encode(), name, 10)
    assert held.get(b"a") == "a"
    held.put(b"d", "d", 10)
    assert [held.get(name.encode()) for name in "abcd"] == ["a", None, "c", "d"]
    assert (held.uses.hits, held.uses.misses) == (4, 1)
    held.put(b"e", "e", 31)
    assert len(held) == 3


def other_question(prompt: Prompt, tail: list[int]) -> Prompt:
    """The same picture and what comes before it, another question behind it."""

    def asked(ids: list[int]) -> list[int]:
        return ids[: len(ids) - ids[::-1].index(IMAGE_ID)] + tail

    return replace(prompt, ids=asked(prompt.ids), short_ids=asked(prompt.short_ids))


def questions(world: World) -> list[Request]:
    """Two pictures, three questions each, pruned and not, with drafts and without."""
    prompts = [
        other_question(world.prompt(seed, 5, IMAGE, 3), tail)
        for tail in ([20, 30], [40], [50, 60, 70, 80, 90])
        for seed in (1, 2)
    ]
    budgets = (8, 8, 16, 8, None, 6)
    return [
        ask(prompt, f"r{index}", retained=budget, speculation=index != 3)
        for index, (prompt, budget) in enumerate(zip(prompts, budgets, strict=True))
    ]


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("together", [1, 3])
def test_answers_do_not_know_of_it(tame: World, kernels: str, together: int) -> None:
    forgetful = tame.engine(max_batch=together, kernels=kernels, image_cache_bytes=0)
    engine = tame.engine(max_batch=together, kernels=kernels)
    for _ in range(2):
        expected, found = (run(any_engine, *questions(tame)) for any_engine in (forgetful, engine))
        assert [facts(result) for result in found] == [facts(result) for result in expected]
    assert engine.stats().prefix_cache_hits >= 8
    assert forgetful.stats().prefix_cache_hits == forgetful.stats().image_cache_hits == 0


def test_what_makes_a_prefix(tame: World) -> None:
    """Another picture, other words before it, and whether the twig read it; not the question, not R-bar."""
    engine = tame.engine(max_batch=1)
    prompt = tame.prompt(1, 5, IMAGE, 3)
    pixels = prompt.pixels
    assert pixels is not None

    def hits(name: str, one: Prompt, **options: object) -> int:
        before = engine.stats().prefix_cache_hits
        run(engine, ask(one, name, max_tokens=2, **options))  # type: ignore[arg-type]
        return engine.stats().prefix_cache_hits - before

    assert hits("new", prompt, retained=8) == 0
    assert hits("other question", other_question(prompt, [7, 8, 9]), retained=6) == 1
    assert hits("other picture", replace(prompt, pixels=pixels + 1e-3), retained=8) == 0
    assert hits("other words", tame.prompt(9, 5, IMAGE, 3), retained=8) == 0
    assert hits("no twig", prompt, retained=16, speculation=False) == 0
    assert hits("no twig again", prompt, retained=16, speculation=False) == 1
    assert hits("text alone", tame.prompt(3, 6)) == 0


def test_a_prompt_that_ends_in_its_picture(tame: World) -> None:
    engine = tame.engine(max_batch=1)
    first, second = (run(engine, ask(tame.prompt(1, 5, IMAGE), name, retained=8))[0] for name in "ab")
    assert first.token_ids == second.token_ids
    assert engine.stats().prefix_cache_hits == 0
    assert engine.stats().image_cache_hits == 1


def towers(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pictures of each pass of the tower, as they come."""
    passes: list[int] = []
    adapter = engine._runner.vision.adapter
    encode = adapter.encode_images

    def counted(pixels: object) -> torch.Tensor:
        passes.append(len(pixels.sizes))  # type: ignore[attr-defined]
        return encode(pixels)  # type: ignore[arg-type]

    monkeypatch.setattr(adapter, "encode_images", counted)
    return passes


@pytest.mark.parametrize(("together", "seen"), [(True, [4]), (False, [1, 1, 1, 1])])
def test_those_that_join_together_are_seen_together(
    tame: World, monkeypatch: pytest.MonkeyPatch, together: bool, seen: list[int]
) -> None:
    """Four different pictures of five requests and one text in one pass, or each alone; the same one once."""
    engine = tame.engine(max_batch=6)
    monkeypatch.setattr(engine._runner.vision, "together", together)
    passes = towers(engine, monkeypatch)
    seeds = (1, 2, 3, 2, 4)
    requests = [ask(tame.prompt(seed, 5, IMAGE, 3), f"r{i}", retained=8) for i, seed in enumerate(seeds)]
    requests.append(ask(tame.prompt(9, 7), "text"))
    expected = {str(r.request_id): facts(run(tame.engine(max_batch=1), r)[0]) for r in requests}
    traces = drive(engine, requests)
    assert passes == seen
    assert {name: facts(trace.result) for name, trace in traces.items()} == expected


def test_a_picture_that_cannot_be_seen_harms_its_own_request_alone(tame: World) -> None:
    good, bad = tame.prompt(1, 5, IMAGE, 3), tame.prompt(2, 5, IMAGE, 3)
    assert bad.pixels is not None
    broken = replace(bad, pixels=bad.pixels * float("nan"))
    requests = [ask(one, name) for name, one in (("a", good), ("b", broken), ("c", tame.prompt(3, 5, IMAGE)))]
    traces = drive(tame.engine(), requests)
    assert {name: trace.result.finish_reason == "error" for name, trace in traces.items()} == {
        "a": False,
        "b": True,
        "c": False,
    }


def test_a_queue_that_waits_for_memory_is_looked_at_once(
    tame: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a picture that cannot be seen the good ones were encoded again in every round of the wait."""
    prompts = [tame.prompt(seed, 100, IMAGE, 4) for seed in (1, 2, 3)]
    options = {"max_tokens": 60, "retained": 8, "ignore_eos": True, "speculation": False}
    run_long, good, bad = (ask(one, str(i), **options) for i, one in enumerate(prompts))
    plain = tame.engine()
    least = plain._memory.least_bytes(plain._admission.prompt(run_long).kv)
    engine = tame.engine(kv_cache_bytes=int(1.2 * least), max_batch=4)
    passes = towers(engine, monkeypatch)
    bad.pixel_values = bad.pixel_values * float("nan")
    traces = drive(engine, {0: [run_long], 1: [good, bad]})
    assert len(traces["0"].outputs) > 5
    assert passes == [1, 2, 1, 1]
    assert [trace.result.finish_reason == "error" for trace in traces.values()] == [False, False, True]


def with_alpha(color: tuple[int, int, int]) -> Image.Image:
    """Mode PA: indices, a palette and alpha."""
    indices = Image.frombytes("L", (40, 40), bytes(index * 7 % 2 for index in range(1600)))
    picture = Image.merge("LA", (indices, Image.new("L", indices.size, 255)))
    picture.putpalette([0, 0, 0, *color] + [0] * 750)
    assert picture.mode == "PA"
    return picture


def test_the_palette_is_part_of_a_picture(tame: World) -> None:
    """Only mode P's was: the answer about a red picture was given again about a blue one."""

    def asked(name: str, picture: Image.Image) -> Request:
        ids = [1, 10, IMAGE_ID, 30, 31, 32]
        return Request(prompt_token_ids=ids, images=[picture], request_id=name)

    engine = tame.engine()
    red, blue = with_alpha((255, 0, 0)), with_alpha((0, 255, 255))
    drive(engine, [asked("red", red)])
    drive(engine, [asked("blue", blue)])
    assert engine.stats().image_cache_hits == engine.stats().prefix_cache_hits == 0


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_pixels_that_overflow_in_the_tower_harm_no_later_request(tame: World, kernels: str) -> None:
    """Finite pixel values passed, their features were NaN, answered with garbage, and stayed in the cache:
    later requests in the same slot, padded beside a longer row, read masked NaN and answered wrongly."""
    few, many = (ask(tame.prompt(1, IMAGE, text), f"{text}", retained=8) for text in (3, 20))
    engine = tame.engine(max_batch=2, kernels=kernels)
    expected = [facts(result) for result in run(engine, few, many)]
    huge = tame.prompt(2, IMAGE, 40)
    assert huge.pixels is not None
    bad = replace(huge, pixels=torch.full_like(huge.pixels, 1e30))
    for result in run(engine, ask(bad, "one"), ask(bad, "two")):
        assert (result.finish_reason, result.token_ids) == ("error", [])
        assert "finite" in str(result.error)
    assert [facts(result) for result in run(engine, few, many)] == expected


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("wanted", [False, True])
def test_a_worker_is_batch_invariant_if_it_is_to_be(tame: World, wanted: bool) -> None:
    checkpoint = {"vlm": str(tame.base_path), "twig": str(tame.twig_path), "dtype": "float32"}
    engine = load_engine(WorkerSettings(**checkpoint, batch_invariant=wanted))
    assert engine._runner.vision.together is not wanted


def test_batch_invariance_without_native_kernels_is_refused(tame: World) -> None:
    with pytest.raises(ValueError, match="batch_invariant needs native kernels"):
        tame.engine(kernels="torch", batch_invariant=True)
