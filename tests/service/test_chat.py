"""`POST /v1/chat/completions` in process: what is taken over from a chat, and what is refused by name."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from service.protocol import Turn
from service.schemas_chat import ChatBody
from tests.service.scripted_worker import CARD, ScriptedWorker
from tests.service.test_describe import PNG64, error_of

URL = "/v1/chat/completions"
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PNG64}}
TEXT = {"type": "text", "text": "What is this?"}
USER = {"role": "user", "content": [TEXT, PICTURE]}
SYSTEM = {"role": "system", "content": "Answer briefly."}


async def post(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post(URL, json={"messages": [USER]} | fields)


def url_of(url: str) -> dict[str, Any]:
    return {"role": "user", "content": [TEXT, {"type": "image_url", "image_url": {"url": url}}]}


async def test_the_whole_completion(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    response = await post(client, quality="balanced", max_tokens=7)
    assert response.status_code == 200, response.text
    (job,) = worker.jobs
    assert job.id.startswith("chatcmpl-")
    assert response.json() == {
        "id": job.id,
        "object": "chat.completion",
        "created": int(job.created_at),
        "model": "scripted",
        "service_tier": "default",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "A small red apple.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 50,
            "completion_tokens": 4,
            "total_tokens": 54,
            "prompt_tokens_details": {
                "image_tokens": 36,
                "retained_image_tokens": 16,
                "pruned_image_tokens": 20,
            },
        },
    }


async def test_it_asks_for_what_describe_asks_for(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    fields: dict[str, Any] = {"max_tokens": 7, "seed": 4, "retained_tokens": 12, "speculation": False}
    fields |= {"temperature": 0.5, "top_p": 0.9, "stop": "."}
    assert (await post(client, **fields)).status_code == 200
    described = {"image": PNG64, "prompt": "What is this?"} | fields
    assert (await client.post("/v1/describe", json=described)).status_code == 200
    chat, describe = worker.jobs
    assert (chat.params, chat.prompt) == (describe.params, describe.prompt)
    # A picture's name is its job's and its digest.
    digests = [[image.sha256.split(":")[1] for image in job.images] for job in (chat, describe)]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("messages", "prompt", "images"),
    [
        ([USER], "What is this?", 1),
        ([{"role": "user", "content": "Hello"}], "Hello", 0),
        ([{"role": "user", "content": [PICTURE]}], "Describe the image.", 1),
        ([{"role": "user", "content": [PICTURE, TEXT, PICTURE, TEXT]}], "What is this?\nWhat is this?", 2),
        ([SYSTEM, USER], "Answer briefly.\n\nWhat is this?", 1),
        ([{**SYSTEM, "role": "developer"}, USER], "Answer briefly.\n\nWhat is this?", 1),
    ],
    ids=["both", "text", "picture", "two pictures", "system", "developer"],
)
async def test_one_turn_becomes_one_prompt(
    client: httpx.AsyncClient, worker: ScriptedWorker, messages: list[Any], prompt: str, images: int
) -> None:
    response = await post(client, messages=messages)
    assert response.status_code == 200, response.text
    (job,) = worker.jobs
    assert (job.prompt, len(job.images)) == (prompt, images)


async def test_a_conversation_becomes_a_history_and_a_prompt(
    client: httpx.AsyncClient, worker: ScriptedWorker
) -> None:
    """Pictures of every turn, in order; the system's words stand before the first turn's own."""
    later = {"role": "user", "content": [{"type": "text", "text": "And this?"}, PICTURE]}
    response = await post(client, messages=[SYSTEM, USER, {"role": "assistant", "content": "A dog."}, later])
    assert response.status_code == 200, response.text
    (job,) = worker.jobs
    first = Turn(role="user", text="Answer briefly.\n\nWhat is this?", images=1)
    assert job.history == (first, Turn(role="assistant", text="A dog."))
    assert (job.prompt, len(job.images)) == ("And this?", 2)


async def test_an_empty_answer_may_be_appended_as_it_came(
    client: httpx.AsyncClient, worker: ScriptedWorker
) -> None:
    """Caught once: a stop string at the first token made a conversation that could not go on."""
    response = await post(client, messages=[USER, {"role": "assistant", "content": ""}, USER])
    assert response.status_code == 200, response.text
    assert worker.jobs[-1].history[-1] == Turn(role="assistant", text="")


async def test_a_tier_without_a_picture(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    await post(client, messages=[{"role": "user", "content": "Hello"}], quality="fast")
    assert worker.jobs[0].params.retained_tokens is None


@pytest.mark.parametrize("model", ["scripted", "default", None])
async def test_models_that_are_served(
    client: httpx.AsyncClient, worker: ScriptedWorker, model: str | None
) -> None:
    assert (await post(client, model=model)).json()["model"] == "scripted"


async def test_a_model_that_is_not_served_is_404(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    error = error_of(await post(client, model="gpt-17"), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")


async def test_what_asks_for_nothing_is_accepted(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    neutral = {"n": 1, "logprobs": False, "presence_penalty": 0, "frequency_penalty": 0.0, "tools": []}
    neutral |= {
        "response_format": {"type": "text"},
        "logit_bias": {},
        "tool_choice": "none",
        "temperature": 0,
    }
    harmless = {"user": "u", "metadata": {"a": "b"}, "store": True, "parallel_tool_calls": True}
    response = await post(client, **neutral, **harmless)
    assert response.status_code == 200, response.text
    every = dict.fromkeys(set(ChatBody.model_fields) - {"messages"})
    response = await post(client, **every)
    assert response.status_code == 200, response.text


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"n": True}, "n"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"functions": [{}]}, "functions"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"frequency_penalty": -1}, "frequency_penalty"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"audio": {}}, "audio"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"web_search_options": {}}, "web_search_options"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=str)
async def test_what_is_not_supported_is_named(
    client: httpx.AsyncClient, worker: ScriptedWorker, fields: dict[str, Any], param: str
) -> None:
    error = error_of(await post(client, **fields), 400)
    assert (error["param"], error["code"]) == (param, "unsupported_value")
    assert worker.jobs == []


ASSISTANT = {"role": "assistant", "content": "An apple."}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"colour": 1}, "colour"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [SYSTEM]}, "messages"),
    ({"messages": [USER, ASSISTANT]}, "messages"),
    ({"messages": [USER, USER]}, "messages"),
    ({"messages": [USER, {**ASSISTANT, "content": [PICTURE]}, USER]}, "messages"),
    ({"messages": [USER, {"role": "tool", "content": "x"}, USER]}, "messages"),
    ({"messages": [USER, ASSISTANT, {"role": "user", "content": [PICTURE, PICTURE]}]}, "messages"),
    (
        {
            "messages": [
                {"role": "user", "content": "x" * 600},
                ASSISTANT,
                {"role": "user", "content": "y" * 600},
            ]
        },
        "messages",
    ),
    ({"messages": [ASSISTANT]}, "messages"),
    ({"messages": [SYSTEM, SYSTEM, USER]}, "messages"),
    ({"messages": [{"role": "system", "content": [PICTURE]}, USER]}, "messages"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages"),
    ({"messages": [{"role": "user", "content": []}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages"),
    ({"messages": [{"role": "user", "content": [PICTURE, PICTURE, PICTURE]}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x" * 1001}]}, "messages"),
    ({"messages": [url_of("https://example.org/a.png")]}, "messages[0].content[1].image_url.url"),
    ({"messages": [SYSTEM, url_of("HTTP://example.org/a.png")]}, "messages[1].content[1].image_url.url"),
    ({"messages": [url_of("file:///etc/passwd")]}, "messages[0].content[1].image_url.url"),
    ({"messages": [url_of("data:image/png,abc")]}, "messages[0].content[1].image_url.url"),
    ({"messages": [url_of(PNG64)]}, "messages[0].content[1].image_url.url"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 257}, "max_tokens"),
    ({"max_completion_tokens": 257}, "max_completion_tokens"),
    ({"max_completion_tokens": 5, "max_tokens": 6}, "max_tokens"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"seed": "x"}, "seed"),
    ({"temperature": 2.5}, "temperature"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"quality": "gorgeous"}, "quality"),
    ({"quality": "fast", "retained_tokens": 8}, "retained_tokens"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=lambda value: str(value)[:70])
async def test_bad_requests_name_the_field(
    client: httpx.AsyncClient, worker: ScriptedWorker, fields: dict[str, Any], param: str
) -> None:
    assert error_of(await post(client, **fields), 400)["param"] == param
    assert worker.jobs == []


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"content": "Hi", "colour": 1}, "Unknown field: 'messages[1].colour'."),
        ({"content": "Hi", "refusal": "No."}, "Bad value for 'messages[1].refusal': only None is supported."),
        (
            {"content": "Hi", "tool_calls": [{}]},
            "Bad value for 'messages[1].tool_calls': only [] is supported.",
        ),
        ({"content": [TEXT, {"type": "text"}]}, "'messages[1].content[1].text' is required."),
        ({"content": [TEXT | {"size": 3}]}, "Unknown field: 'messages[1].content[0].size'."),
        ({"content": [PICTURE | {"image_url": {}}]}, "'messages[1].content[0].image_url.url' is required."),
        ({"content": [PICTURE | {"image_url": 5}]}, "'messages[1].content[0].image_url': Input should be"),
        ({"content": [{"type": "video"}]}, "Bad value for 'messages[1].content[0]': Input tag 'video'"),
    ],
    ids=str,
)
async def test_a_fault_inside_a_message_is_named_by_its_place(
    client: httpx.AsyncClient, worker: ScriptedWorker, message: dict[str, Any], says: str
) -> None:
    error = error_of(await post(client, messages=[SYSTEM, {"role": "user"} | message]), 400)
    assert error["param"] == "messages"
    assert says in error["message"]


async def test_fetching_is_off_and_it_says_so(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    error = error_of(await post(client, messages=[url_of("https://example.org/a.png")]), 400)
    assert error["code"] == "url_not_fetched"
    assert "not fetched" in error["message"]


async def test_impossible_retained_tokens_is_422(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    assert error_of(await post(client, retained_tokens=35), 422)["param"] == "retained_tokens"


async def test_a_body_that_is_not_json(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    error_of(await client.post(URL, data={"messages": "x"}), 415)
    error_of(await client.post(URL, content=b"{", headers={"Content-Type": "application/json"}), 400)
    error_of(await client.post(URL, headers={"Content-Type": "application/json"}), 400)
    error_of(await client.post(URL, json=[1]), 400)


async def test_no_worker_is_503(client: httpx.AsyncClient) -> None:
    assert error_of(await post(client, model="gpt-17"), 503)["code"] == "no_worker"


async def test_an_idempotency_key(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    client.headers["Idempotency-Key"] = "k"
    first, second = await post(client), await post(client)
    assert first.json() == second.json()
    described = await client.post("/v1/describe", json={"image": PNG64, "prompt": TEXT["text"]})
    assert error_of(described, 409)["code"] == "idempotency_conflict"


async def test_a_completion_cut_short(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    script = worker.script
    worker.script = lambda job: (
        script(job)[0],
        script(job)[1].model_copy(update={"finish_reason": "length"}),
    )
    assert (await post(client)).json()["choices"][0]["finish_reason"] == "length"
    assert CARD.model_id == "scripted"
