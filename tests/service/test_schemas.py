"""Fields against their static limits and the model card; the OpenAPI text against the schemas."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from model.randomness import MAX_SEED
from service.errors import BadField, ImpossibleRetained
from service.idempotency import fingerprint_of
from service.intake import Submission
from service.params import TextLimits, job_params, retained_tokens
from service.protocol import Turn
from service.schemas import DescribeBody, DescribeFields
from service.schemas_chat import ChatBody
from tests.service.scripted_worker import CARD

LIMITS = TextLimits(max_prompt_chars=100, max_tokens_default=128, max_tokens_limit=4096)


@pytest.mark.parametrize(
    "fields", [{"nope": 1}, {"top_p": float("nan")}, {"temperature": float("inf")}], ids=str
)
def test_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DescribeFields.model_validate(fields)


def test_a_lone_string_is_a_list_of_one() -> None:
    body = DescribeBody.model_validate({"image": "x", "stop": "y", "include": "token_map"})
    assert (body.image, body.stop, body.include) == (["x"], ["y"], ["token_map"])


@pytest.mark.parametrize(
    ("fields", "images", "expected"),
    [
        ({}, 1, None),
        ({"quality": "fast"}, 1, 8),
        ({"quality": "exact"}, 2, 72),
        ({"retained_tokens": 8}, 2, 8),
        ({"retained_tokens": 60}, 2, 60),
        ({"retained_tokens": 72}, 2, 72),
    ],
    ids=str,
)
def test_retained_tokens(fields: dict[str, Any], images: int, expected: int | None) -> None:
    assert retained_tokens(DescribeFields(**fields), CARD, images) == expected


@pytest.mark.parametrize(("asked", "images"), [(3, 1), (31, 1), (36, 2), (30 * 2 + 1, 2)])
def test_impossible_retained_tokens(asked: int, images: int) -> None:
    """36 is `no pruning` for one picture, not for two."""
    if (asked, images) == (36, 2):
        assert retained_tokens(DescribeFields(retained_tokens=36), CARD, 2) == 36
        return
    with pytest.raises(ImpossibleRetained):
        retained_tokens(DescribeFields(retained_tokens=asked), CARD, images)


def test_max_tokens_never_exceeds_the_context() -> None:
    short = CARD.model_copy(update={"max_model_len": 64})
    assert job_params(Submission(DescribeFields(), [b""]), short, LIMITS).max_tokens == 64
    with pytest.raises(BadField, match="at most 64"):
        job_params(Submission(DescribeFields(max_tokens=65), [b""]), short, LIMITS)


async def test_openapi_is_complete(client: httpx.AsyncClient) -> None:
    api = (await client.get("/openapi.json")).json()
    describe = api["paths"]["/v1/describe"]["post"]
    for content_type in ("multipart/form-data", "application/json"):
        schema = describe["requestBody"]["content"][content_type]["schema"]
        assert set(schema["properties"]) == {"image", *DescribeFields.model_fields}
        assert schema["required"] == ["image"]
        assert schema["additionalProperties"] is False
    statuses = (200, 202, 400, 401, 403, 408, 409, 413, 415, 422, 429, 500, 503, 504)
    assert set(describe["responses"]) == {str(status) for status in statuses}
    for status, response in describe["responses"].items():
        name = {"200": "Description", "202": "JobObject"}.get(status, "ErrorBody")
        assert response["content"]["application/json"]["schema"]["$ref"].endswith(name)
    assert "text/event-stream" in describe["responses"]["200"]["content"]
    assert {"/livez", "/readyz", "/metrics"} <= set(api["paths"])


async def test_docs_page(client: httpx.AsyncClient) -> None:
    response = await client.get("/docs")
    assert response.status_code == 200
    assert "openapi.json" in response.text


@pytest.mark.parametrize(
    ("seed", "engines"), [(-1, 2**64 - 1), (-(2**63), 2**63), (0, 0), (2**63 - 1, 2**63 - 1)]
)
def test_a_seed_has_64_bits_with_a_sign(seed: int, engines: int) -> None:
    """As OpenAI's has. The engine's has none: each becomes another there."""
    assert job_params(Submission(DescribeFields(seed=seed), [b""]), CARD, LIMITS).seed == engines
    assert engines <= MAX_SEED


def test_one_bad_item_of_a_list_is_enough() -> None:
    """An error for each of them took seconds, and hundreds of megabytes, to build."""
    for model, body in (
        (DescribeBody, {"image": [1] * 1000}),
        (ChatBody, {"messages": [1] * 1000}),
        (ChatBody, {"messages": [{"role": "user", "content": [1] * 1000}]}),
    ):
        with pytest.raises(ValidationError) as refused:
            model.model_validate(body)
        assert refused.value.error_count() == 1


def test_lists_are_limited() -> None:
    hello = {"role": "user", "content": "Hello"}
    for model, body in (
        (DescribeBody, {"image": [""] * 65}),
        (ChatBody, {"messages": [hello] * 1025}),
        (ChatBody, {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 257}]}),
    ):
        with pytest.raises(ValidationError, match="should have at most"):
            model.model_validate(body)


def test_a_model_without_a_chat_template_takes_one_turn() -> None:
    earlier = (Turn(role="user", text="Hello"), Turn(role="assistant", text="Hello."))
    talk = Submission(DescribeFields(), [], history=earlier)
    with pytest.raises(BadField) as refused:
        job_params(talk, CARD.model_copy(update={"takes_turns": False}), LIMITS)
    assert (refused.value.param, refused.value.code) == ("messages", "unsupported_value")
    assert job_params(talk, CARD, LIMITS)


def test_earlier_turns_are_part_of_what_an_idempotency_key_stands_for() -> None:
    plain = Submission(DescribeFields(), [b"x"])
    talk = Submission(DescribeFields(), [b"x"], history=(Turn(role="user", text="Hello", images=1),))
    assert fingerprint_of(plain) != fingerprint_of(talk)
