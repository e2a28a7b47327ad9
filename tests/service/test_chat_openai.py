"""The official `openai` client against a gateway on a port: whole, streamed, refused; and the models."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from model.request import Turn
from service.protocol import ErrorData
from tests.service.gateway_fixture import Live, eventually
from tests.service.scripted_worker import CARD, ScriptedWorker, failing
from tests.service.stub_engine import StubEngine, expected_tokens, text_of
from tests.service.test_chat import PICTURE, TEXT, URL, USER, url_of
from tests.service.test_describe_stub import ready, stub  # noqa: F401

USAGE = {
    "completion_tokens": 4,
    "prompt_tokens": 50,
    "total_tokens": 54,
    "prompt_tokens_details": {"image_tokens": 36, "retained_image_tokens": 8, "pruned_image_tokens": 28},
}


@pytest.fixture
async def ai(live: Live) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


async def chunks_of(ai: AsyncOpenAI, **fields: Any) -> list[Any]:
    stream = await ai.chat.completions.create(model="default", messages=[USER], stream=True, **fields)  # type: ignore[list-item]
    return [chunk async for chunk in stream]


async def test_plain(ai: AsyncOpenAI, worker: ScriptedWorker) -> None:
    completion = await ai.chat.completions.create(
        model="scripted",
        messages=[{"role": "system", "content": "Be brief."}, USER],  # type: ignore[list-item]
        max_completion_tokens=9,
        seed=1,
        extra_body={"retained_tokens": 8, "speculation": False},
    )
    (choice,) = completion.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "A small red apple.")
    assert choice.finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.model_dump(exclude_none=True) == USAGE
    (job,) = worker.jobs
    assert (job.params.max_tokens, job.params.retained_tokens, job.params.speculation) == (9, 8, False)


async def test_streaming(ai: AsyncOpenAI, worker: ScriptedWorker) -> None:
    chunks = await chunks_of(ai)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert [delta.content for delta in deltas[1:-1]] == ["A", " small", " red", " apple."]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == 5 * [None] + ["stop"]
    assert {(chunk.id, chunk.object, chunk.model) for chunk in chunks} == {
        (worker.jobs[0].id, "chat.completion.chunk", "scripted")
    }
    assert all(chunk.usage is None for chunk in chunks)


async def test_streaming_with_usage(ai: AsyncOpenAI, worker: ScriptedWorker) -> None:
    *chunks, last = await chunks_of(ai, stream_options={"include_usage": True})
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage.model_dump(exclude_none=True) == USAGE


async def test_the_bytes_of_a_stream(live: Live, worker: ScriptedWorker) -> None:
    """As OpenAI sends them: nothing but `data:`, the delta only of what is new, `[DONE]` last."""
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
        response = await client.post(URL, json={"messages": [USER], "stream": True})
    assert response.headers["Content-Type"].startswith("text/event-stream")
    sent = [block for block in response.text.split("\n\n") if block and not block.startswith(":")]
    assert sent[-1] == "data: [DONE]"
    bodies = [json.loads(block.removeprefix("data: ")) for block in sent[:-1]]
    deltas = [body["choices"][0]["delta"] for body in bodies]
    assert deltas[:2] == [{"role": "assistant", "content": ""}, {"content": "A"}]
    assert deltas[-1] == {}
    assert all("usage" not in body for body in bodies)


async def test_an_error_in_a_stream_is_raised(ai: AsyncOpenAI, worker: ScriptedWorker) -> None:
    worker.script = failing(ErrorData(message="boom", code="engine_failed"))
    with pytest.raises(openai.APIError, match="boom"):
        await chunks_of(ai)


@pytest.mark.parametrize(
    ("fields", "ours", "known"),
    [
        ({}, "prompt", "messages"),
        ({}, "history", "messages"),
        ({}, "images", "messages"),
        ({}, "max_tokens", "max_tokens"),
        ({"max_completion_tokens": 9}, "max_tokens", "max_completion_tokens"),
        ({}, "retained_tokens", "retained_tokens"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_what_a_worker_refuses_is_named_as_the_client_knows_it(
    ai: AsyncOpenAI, worker: ScriptedWorker, stream: bool, fields: dict[str, Any], ours: str, known: str
) -> None:
    """Caught once: a stream's error named `prompt`, and every answer's `history`, which no chat has."""
    worker.script = failing(ErrorData(type="invalid_request_error", message="no", code="c", param=ours))
    whole = ai.chat.completions.create
    asked: dict[str, Any] = {"model": "default", "messages": [USER]} | fields
    with pytest.raises(openai.APIError) as caught:
        await (chunks_of(ai, **fields) if stream else whole(**asked))
    assert caught.value.param == known


async def test_leaving_a_stream_cancels(ai: AsyncOpenAI, live: Live, worker: ScriptedWorker) -> None:
    worker.hold()
    stream = await ai.chat.completions.create(model="default", messages=[USER], stream=True)  # type: ignore[list-item]
    await eventually(lambda: len(worker.jobs) == 1)
    await stream.close()
    await eventually(lambda: worker.cancelled == [worker.jobs[0].id])
    await eventually(lambda: live.gateway.admission.in_flight == 0)


async def test_errors_are_the_clients_own(ai: AsyncOpenAI, worker: ScriptedWorker) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await ai.chat.completions.create(
            model="default",
            messages=[url_of("https://example.org/a.png")],  # type: ignore[list-item]
        )
    assert (refused.value.code, refused.value.param) == (
        "url_not_fetched",
        "messages[0].content[1].image_url.url",
    )
    with pytest.raises(openai.BadRequestError) as many:
        await ai.chat.completions.create(model="default", messages=[USER], n=2)  # type: ignore[list-item]
    assert many.value.param == "n"
    with pytest.raises(openai.NotFoundError) as unknown:
        await ai.chat.completions.create(model="gpt-17", messages=[USER])  # type: ignore[list-item]
    assert unknown.value.code == "model_not_found"


async def test_models(ai: AsyncOpenAI, worker: ScriptedWorker) -> None:
    (model,) = [model async for model in ai.models.list()]
    assert (model.id, model.object, model.owned_by) == ("scripted", "model", "twigserve")
    assert (await ai.models.retrieve("scripted")).model_extra == {"card": CARD.model_dump(mode="json")}
    with pytest.raises(openai.NotFoundError):
        await ai.models.retrieve("gpt-17")


async def test_a_conversation(
    ai: AsyncOpenAI,
    ready: httpx.AsyncClient,  # noqa: F811
    stub: StubEngine,  # noqa: F811
) -> None:
    messages: list[Any] = [
        USER,
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": "Sure?"},
    ]
    answer = await ai.chat.completions.create(model="stub", messages=messages, max_tokens=3)
    assert answer.choices[0].message.content == text_of(expected_tokens("Sure?", 3))
    (request,) = stub.seen
    assert request.history == (Turn("user", "What is this?", 1), Turn("assistant", "A dog."))
    assert len(request.images) == 1


async def test_an_answer_is_sent_back_as_it_came(ai: AsyncOpenAI, worker: ScriptedWorker) -> None:
    """OpenAI's idiom for several turns. Its message has fields besides the two that matter."""
    first = await ai.chat.completions.create(model="default", messages=[USER])  # type: ignore[list-item]
    more: dict[str, Any] = {"annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    for answer in (first.choices[0].message, first.choices[0].message.model_dump() | more):
        messages: list[Any] = [USER, answer, {"role": "user", "content": "Sure?"}]
        await ai.chat.completions.create(model="default", messages=messages)
    assert [turn.text for turn in worker.jobs[-1].history] == ["What is this?", "A small red apple."]


async def test_through_the_real_worker_loop(
    ai: AsyncOpenAI,
    ready: httpx.AsyncClient,  # noqa: F811
    stub: StubEngine,  # noqa: F811
) -> None:
    """Words, pictures and the length limit arrive; whole and streamed say the same."""
    messages: list[Any] = [{"role": "user", "content": [PICTURE, TEXT, PICTURE]}]
    whole = await ai.chat.completions.create(model="stub", messages=messages, max_tokens=9)
    stream = await ai.chat.completions.create(model="stub", messages=messages, max_tokens=9, stream=True)
    streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert whole.choices[0].message.content == streamed == text_of(expected_tokens("What is this?", 9))
    assert whole.choices[0].finish_reason == "length"
    assert [len(request.images) for request in stub.seen] == [2, 2]
