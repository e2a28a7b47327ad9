"""Bad requests are refused when they are added, name the field, and leave nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.engine import Engine, EngineConfig, RequestError
from model.request import Request, SamplingParams
from tests.model.harness import IMAGE, World, ask, run


@pytest.fixture(scope="module")
def shared(wild: World) -> Engine:
    return wild.engine()


@pytest.fixture
def engine(shared: Engine, wild: World) -> Iterator[Engine]:
    """Whatever was refused, the engine is idle, empty and still answers."""
    yield shared
    left = shared.has_work()
    while shared.has_work():
        shared.step()
    assert not left
    shared.check_integrity()
    (result,) = run(shared, ask(wild.prompt(0, 5, IMAGE, 4), max_tokens=2))
    assert len(result.token_ids) == 2


def refused(engine: Engine, request: Request) -> RequestError:
    with pytest.raises(RequestError) as raised:
        engine.add(request)
    assert isinstance(raised.value, ValueError)
    return raised.value


@pytest.mark.parametrize("images", [0, 1])
def test_a_placeholder_in_the_question(engine: Engine, images: int) -> None:
    """Was called a wrong number of images, a field in which there was nothing wrong."""
    error = refused(engine, Request("what is <image>?", [Image.new("RGB", (8, 8))] * images))
    assert error.param == "prompt"
    assert "<image>" in str(error)


@pytest.mark.parametrize("excess", [0, 1, 100])
def test_prompt_too_long(engine: Engine, wild: World, excess: int) -> None:
    """1 + text + 16 visual tokens leave no room for a single token of the answer."""
    text = wild.shape.max_len - 17 + excess
    error = refused(engine, ask(wild.prompt(0, text, IMAGE), max_tokens=1))
    assert error.param == "prompt"
    assert str(wild.shape.max_len) in str(error)
    assert str(wild.shape.max_len + excess) in str(error)


@pytest.mark.parametrize("room", [1, 5])
def test_no_room_for_the_answer(engine: Engine, wild: World, room: int) -> None:
    """Refused rather than cut short, and the largest possible max_tokens is named."""
    error = refused(engine, ask(wild.prompt(0, wild.shape.max_len - 17 - room, IMAGE), max_tokens=room + 1))
    assert error.param == "max_tokens"
    assert str(wild.shape.max_len) in str(error)
    assert f"at most {room}" in str(error)


@pytest.mark.parametrize("speculation", [False, True])
@pytest.mark.parametrize("room", [1, 2, 4, 9])
def test_an_answer_fills_the_last_position(wild: World, room: int, speculation: bool) -> None:
    prompt = wild.prompt(0, wild.shape.max_len - 17 - room, IMAGE)
    request = ask(prompt, max_tokens=room, retained=8, ignore_eos=True, speculation=speculation)
    (result,) = run(wild.engine(), request)
    assert (len(result.token_ids), result.finish_reason) == (room, "length")
    assert result.prompt_tokens + room == wild.shape.max_len


def test_a_shorter_limit_of_the_engine(wild: World) -> None:
    engine = wild.engine(max_model_len=40)
    assert "40" in str(refused(engine, ask(wild.prompt(0, 30, IMAGE), max_tokens=1)))
    assert engine.card.max_model_len == 40
    with pytest.raises(ValueError, match=str(wild.shape.max_len)):
        wild.engine(max_model_len=wild.shape.max_len + 1)


@pytest.mark.parametrize("parts", [(5,), (5, IMAGE, IMAGE)])
def test_placeholders_and_images_must_agree(
    engine: Engine, wild: World, parts: tuple[int | str, ...]
) -> None:
    """One picture for no placeholder, and for two: both counts are named."""
    request = ask(wild.prompt(0, *parts))
    request.pixel_values = wild.prompt(0, IMAGE).pixels
    message = str(refused(engine, request))
    assert "1" in message
    assert str(parts.count(IMAGE)) in message


def test_placeholders_without_any_image(engine: Engine, wild: World) -> None:
    request = ask(wild.prompt(0, 5, IMAGE))
    request.pixel_values = None
    refused(engine, request)


def test_half_expanded_placeholders(engine: Engine, wild: World) -> None:
    request = ask(wild.prompt(0, 5, IMAGE))
    request.prompt_token_ids = wild.prompt(0, 5, IMAGE).ids[:-3]
    refused(engine, request)


def test_too_many_images(wild: World) -> None:
    refused(wild.engine(max_images=1), ask(wild.prompt(0, IMAGE, IMAGE, 3)))


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (3, 32, 32), (1, 1, 32, 32)])
def test_pixel_values_of_another_shape(engine: Engine, wild: World, shape: tuple[int, ...]) -> None:
    request = ask(wild.prompt(0, 5, IMAGE))
    request.pixel_values = torch.zeros(shape)
    assert refused(engine, request).param == "pixel_values"


def test_images_and_pixel_values_at_once(engine: Engine, wild: World) -> None:
    request = ask(wild.prompt(0, 5, IMAGE))
    request.images = [Image.new("RGB", (8, 8))]
    refused(engine, request)


@pytest.mark.parametrize("image", ["cat.png", np.zeros((4, 4)), np.zeros((4, 4, 3), dtype=np.float32)])
def test_what_is_not_a_picture(engine: Engine, image: object) -> None:
    assert refused(engine, Request("hello", [image])).param == "images"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", float("inf")),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("max_tokens", 0),
        ("max_tokens", -3),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 1.5),
        ("temperature", "hot"),
        ("temperature", None),
        ("top_p", "most"),
    ],
)
def test_sampling_that_cannot_be(engine: Engine, wild: World, field: str, value: object) -> None:
    """What is no number at all was a TypeError of a comparison, without the field's name."""
    request = ask(wild.prompt(0, 5, IMAGE))
    request.sampling = replace(SamplingParams(), **{field: value})
    error = refused(engine, request)
    assert error.param == field
    assert field in str(error)


@pytest.mark.parametrize("token", [-1, 100_000])
def test_tokens_outside_the_vocabulary(engine: Engine, wild: World, token: int) -> None:
    request = ask(wild.prompt(0, 5, IMAGE))
    request.prompt_token_ids = [*request.prompt_token_ids, token]
    assert refused(engine, request).param == "prompt_token_ids"
    refused(engine, ask(wild.prompt(0, 5, IMAGE), resume=[token]))


@pytest.mark.parametrize("ids", [["5"], [5.5], [[5, 6]], torch.tensor([[5, 6]]), np.array([5.0]), 5])
def test_what_is_no_sequence_of_ids(engine: Engine, wild: World, ids: Any) -> None:
    """Was a TypeError or a RuntimeError of torch, and 5.5 became 5."""
    assert refused(engine, Request(prompt_token_ids=ids)).param == "prompt_token_ids"
    refusal = refused(engine, replace(ask(wild.prompt(0, 5)), resume_token_ids=ids))
    assert refusal.param == "resume_token_ids"


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_ids_in_an_array_come_out_as_integers(engine: Engine, wild: World, kind: Callable[..., Any]) -> None:
    """`Result.token_ids` began with the array's own scalars, which no JSON takes."""
    prompt = wild.prompt(0, 5, IMAGE, 4)
    (whole,) = run(engine, ask(prompt, max_tokens=4))
    request = ask(prompt, max_tokens=4)
    request.prompt_token_ids = kind(prompt.short_ids)
    request.resume_token_ids = kind(whole.token_ids[:2])
    (result,) = run(engine, request)
    assert json.loads(json.dumps(result.token_ids)) == whole.token_ids


@pytest.mark.parametrize(("field", "value"), [("images", Image.new("RGB", (8, 8))), ("prompt", None)])
def test_a_field_of_the_wrong_type(engine: Engine, field: str, value: object) -> None:
    """One picture without its list was a TypeError; None was asked for by that name."""
    assert refused(engine, replace(Request("hello"), **{field: value})).param == field


def test_an_empty_prompt(engine: Engine) -> None:
    refused(engine, Request(prompt_token_ids=[]))


def test_an_id_in_use(engine: Engine, wild: World) -> None:
    prompt = wild.prompt(0, 5, IMAGE, 4)
    engine.add(ask(prompt, "twice", max_tokens=2))
    assert refused(engine, ask(prompt, "twice")).param == "request_id"
    while engine.has_work():
        engine.step()
    run(engine, ask(prompt, "twice", max_tokens=2))


@pytest.mark.parametrize(
    "bad",
    [
        {"max_batch": 0},
        {"max_batch": True},
        {"max_batch": None},
        {"draft_threshold": 1.5},
        {"draft_threshold": "low"},
        {"draft_tokens": 2.5},
        {"max_model_len": 0},
        {"max_model_len": 64.5},
        {"kv_cache_bytes": 1e9},
        {"image_cache_bytes": -1},
        {"threads": "2"},
        {"governor": "off"},
        {"batch_invariant": 1},
        {"quality": {"fast": 6.5}},
    ],
    ids=str,
)
def test_configuration_that_cannot_be(bad: dict[str, Any]) -> None:
    """A budget in floating point made every `step` raise, for ever; half a draft failed every round."""
    with pytest.raises(ValueError, match=next(iter(bad))):
        EngineConfig(**bad)


@pytest.mark.parametrize("twig", [True, False])
def test_a_tier_that_no_request_could_have(wild: World, twig: bool) -> None:
    """It was left out of the card: whoever asked for it was told that there is no such tier."""
    with pytest.raises(ValueError, match="quality fast"):
        wild.engine(twig=twig, quality={"fast": 3, "exact": 16})
    assert wild.engine(twig=twig, quality={"exact": 16}).card.quality == {"exact": 16}


def test_unknown_configuration_is_named() -> None:
    with pytest.raises(TypeError, match="max_bach"):
        EngineConfig(max_bach=3)
