"""Batches with the official client: lines in, results out, faults named, a gateway that dies in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from service import batch_runner
from service.broker.tasks import end
from service.errors import NotFound
from service.protocol import ErrorData, Job
from service.settings import GatewaySettings
from tests.service.gateway_fixture import Live, counted, eventually, on_a_port
from tests.service.scripted_worker import CARD, ScriptedWorker, apple, failing
from tests.service.test_chat import USER
from tests.service.test_describe import PNG64, error_of

WITHIN_S = 60.0
CHAT = "/v1/chat/completions"
LONG = {"role": "user", "content": "x" * 1001}


def line(custom_id: str, url: str = "/v1/describe", **body: Any) -> dict[str, Any]:
    asked = {"image": PNG64, "prompt": custom_id} | body if url == "/v1/describe" else body
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": asked}


def jsonl(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


def client_of(live: Live) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0, timeout=WITHIN_S)


@pytest.fixture
async def ai(live: Live) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(live) as client:
        yield client


async def submit(ai: AsyncOpenAI, content: bytes, endpoint: str = "/v1/describe", **fields: Any) -> Any:
    file = await ai.files.create(file=("requests.jsonl", content), purpose="batch")
    return await ai.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,  # type: ignore[arg-type]
        completion_window="24h",
        **fields,
    )


async def ended(ai: AsyncOpenAI, batch_id: str) -> Any:
    async with asyncio.timeout(WITHIN_S):
        while (batch := await ai.batches.retrieve(batch_id)).status in ("in_progress", "cancelling"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return batch


async def results(ai: AsyncOpenAI, file_id: str) -> list[dict[str, Any]]:
    content = await ai.files.content(file_id)
    return [json.loads(text) for text in content.text.splitlines()]


async def test_every_line_is_answered_in_order(ai: AsyncOpenAI, worker: ScriptedWorker) -> None:
    lines = [line(f"p{number}", max_tokens=7) for number in range(6)]
    batch = await submit(ai, jsonl(*lines), metadata={"set": "a"})
    assert (batch.object, batch.endpoint, batch.metadata) == ("batch", "/v1/describe", {"set": "a"})
    assert (batch.output_file_id, batch.request_counts.total) == (None, 6)
    batch = await ended(ai, batch.id)
    assert batch.status == "completed"
    assert batch.completed_at >= batch.in_progress_at >= batch.created_at
    assert batch.request_counts.model_dump() == {"total": 6, "completed": 6, "failed": 0}
    assert batch.error_file_id is None
    answers = await results(ai, batch.output_file_id)
    assert [(answer["custom_id"], answer["line"]) for answer in answers] == [
        (f"p{n}", n + 1) for n in range(6)
    ]
    for answer in answers:
        assert answer["response"]["status_code"] == 200
        assert answer["response"]["body"]["text"] == "A small red apple."
    assert {(job.params.max_tokens, job.priority) for job in worker.jobs} == {(7, "batch")}
    about = await ai.files.retrieve(batch.output_file_id)
    assert (about.purpose, about.bytes > 0) == ("batch_output", True)


async def test_chats(ai: AsyncOpenAI, worker: ScriptedWorker) -> None:
    lines = jsonl(line("c", "/v1/chat/completions", model="default", messages=[USER]))
    batch = await ended(ai, (await submit(ai, lines, "/v1/chat/completions")).id)
    (answer,) = await results(ai, batch.output_file_id)
    assert answer["response"]["body"]["choices"][0]["message"]["content"] == "A small red apple."


async def test_a_lines_own_faults_are_its_result(ai: AsyncOpenAI, worker: ScriptedWorker) -> None:
    def failing_once(job: Job) -> Any:
        if job.prompt == "boom":
            return [], ErrorData(message="boom", code="engine_failed")
        return apple(job)

    worker.script = failing_once
    bad = [line("a", max_tokens=-1), line("b", image="aGVsbG8="), line("c", stream=True), line("boom")]
    batch = await ended(ai, (await submit(ai, jsonl(*bad, line("good")))).id)
    assert batch.status == "completed"
    assert batch.request_counts.model_dump() == {"total": 5, "completed": 1, "failed": 4}
    errors = {each["custom_id"]: each for each in await results(ai, batch.error_file_id)}
    said = {name: each["response"]["body"]["error"] for name, each in errors.items()}
    assert {name: each["line"] for name, each in errors.items()} == {"a": 1, "b": 2, "c": 3, "boom": 4}
    assert {name: each["response"]["status_code"] for name, each in errors.items()} == {
        "a": 400, "b": 415, "c": 400, "boom": 500,
    }  # fmt: skip
    assert (said["a"]["param"], "greater than or equal to 1" in said["a"]["message"]) == ("max_tokens", True)
    assert (said["c"]["param"], said["boom"]["code"]) == ("stream", "engine_failed")


async def test_a_chats_faults_are_named_as_its_line_has_them(ai: AsyncOpenAI, worker: ScriptedWorker) -> None:
    """Caught once: they named `prompt` and `max_tokens`, which the lines did not have."""
    worker.script = failing(ErrorData(type="invalid_request_error", message="no", code="c", param="history"))
    bad = [{"max_completion_tokens": 257}, {"max_tokens": 257}, {"messages": [LONG]}, {}]
    lines = [line(str(n), CHAT, **{"messages": [USER]} | fields) for n, fields in enumerate(bad)]
    batch = await ended(ai, (await submit(ai, jsonl(*lines), CHAT)).id)
    said = [each["response"]["body"]["error"]["param"] for each in await results(ai, batch.error_file_id)]
    assert said == ["max_completion_tokens", "max_tokens", "messages", "messages"]


async def test_each_line_is_counted_once(ai: AsyncOpenAI, live: Live, worker: ScriptedWorker) -> None:
    """Caught once: none was, so a fleet that failed every batch had spent nothing of its error budget."""
    script = failing(ErrorData(message="boom", code="engine_failed"))
    worker.script = lambda job: script(job) if job.prompt == "boom" else apple(job)
    lines = [line("good"), line("well"), line("boom"), line("a", max_tokens=-1)]
    await ended(ai, (await submit(ai, jsonl(*lines))).id)
    assert counted(live) == {("stop",): 2, ("engine_failed", "500"): 1, ("invalid_field", "400"): 1}
    latency = "twigvlm_e2e_request_latency_seconds_count"
    assert live.gateway.metrics.registry.get_sample_value(latency) == 0  # no client waited for them


async def test_unreadable_lines_are_all_named_and_nothing_runs(
    ai: AsyncOpenAI, worker: ScriptedWorker
) -> None:
    good = line("good")
    wrong = [
        line("x") | {"method": "GET"},
        line("y") | {"url": "/v1/models"},
        line("z") | {"colour": 1},
        {"method": "POST", "url": "/v1/describe", "body": {}},
        line("other", "/v1/chat/completions"),
        good,
    ]
    content = jsonl(good, *wrong) + b"not json\n"
    batch = await submit(ai, content)
    assert (batch.status, batch.failed_at is not None) == ("failed", True)
    named = [(error.line, error.param) for error in batch.errors.data]
    assert named == [
        (2, "method"), (3, "url"), (4, "colour"), (5, "custom_id"), (6, "url"), (7, "custom_id"), (8, None),
    ]  # fmt: skip
    assert all(error.message.startswith(f"Line {error.line}: ") for error in batch.errors.data)
    assert worker.jobs == []


async def test_limits(ai: AsyncOpenAI, live: Live, worker: ScriptedWorker) -> None:
    with pytest.raises(openai.APIStatusError) as many:
        await submit(ai, jsonl(*({"n": n} for n in range(21))))
    assert (many.value.status_code, "at most 20" in many.value.message) == (413, True)
    with pytest.raises(openai.APIStatusError) as large:
        await submit(ai, b" " * 100_001)
    assert (large.value.status_code, "at most 100000" in large.value.message) == (413, True)
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
        file = {"file": ("a", b"{}")}
        error_of(await client.post("/v1/files", files=file, data={"purpose": "fine-tune"}), 400)
        error_of(await client.post("/v1/files", data={"purpose": "batch"}), 415)
        error = error_of(await client.post("/v1/files", files=file | {"extra": ("b", b"")}), 400)
        assert error["param"] == "extra"
        for twice in ([*file.items(), *file.items()], [("purpose", (None, "batch"))] * 2):  # the last one won
            error = error_of(await client.post("/v1/files", files=twice), 400)
            assert "more than once" in error["message"]
        error = error_of(
            await client.post("/v1/batches", json={"input_file_id": "file-1", "endpoint": "/"}), 400
        )
        assert error["param"] == "endpoint"


async def test_what_is_not_there(ai: AsyncOpenAI, worker: ScriptedWorker) -> None:
    name = "0" * 32
    for ask in (
        ai.batches.retrieve(f"batch-{name}"),
        ai.batches.cancel("batch-1"),
        ai.files.retrieve(f"file-{name}"),
        ai.files.content(f"output-{name}"),
        ai.files.delete(f"output-{name}"),
        ai.batches.create(input_file_id="file-1", endpoint="/v1/describe", completion_window="24h"),  # type: ignore[arg-type]
    ):
        with pytest.raises(openai.NotFoundError):
            await ask
    file = await ai.files.create(file=("f", b"{}"), purpose="batch")
    assert (await ai.files.retrieve(file.id)).filename == "f"
    assert (await ai.files.content(file.id)).content == b"{}"
    assert (await ai.files.delete(file.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await ai.files.retrieve(file.id)


async def test_cancel_keeps_what_was_answered(ai: AsyncOpenAI, worker: ScriptedWorker) -> None:
    worker.hold()
    batch = await submit(ai, jsonl(*(line(f"p{n}") for n in range(12))))
    await eventually(lambda: len(worker.jobs) == 1)
    assert (await ai.batches.cancel(batch.id)).status == "cancelling"
    worker.resume()
    batch = await ended(ai, batch.id)
    assert batch.status == "cancelled"
    assert batch.request_counts.completed < 12
    assert (await ai.batches.cancel(batch.id)).status == "cancelled"


async def test_no_more_than_a_few_lines_at_once(ai: AsyncOpenAI, live: Live, worker: ScriptedWorker) -> None:
    worker.hold()
    batch = await submit(ai, jsonl(*(line(f"p{n}") for n in range(12))))
    await eventually(lambda: len(worker.jobs) == 1)
    queue, _ = await live.gateway.look()
    assert queue.waiting + queue.pending <= 4
    worker.resume()
    assert (await ended(ai, batch.id)).request_counts.completed == 12


async def test_a_gateway_that_dies_is_taken_over(settings: GatewaySettings, worker: ScriptedWorker) -> None:
    """No line is run twice, and none is lost."""
    async with on_a_port(settings) as first, client_of(first) as ai:
        worker.hold()
        batch = await submit(ai, jsonl(*(line(f"p{n}") for n in range(8))))
        await eventually(lambda: len(worker.jobs) == 1)
    worker.resume()
    async with on_a_port(settings) as second, client_of(second) as ai:
        batch = await ended(ai, batch.id)
        assert batch.request_counts.model_dump() == {"total": 8, "completed": 8, "failed": 0}
    assert sorted(job.prompt for job in worker.jobs) == [f"p{n}" for n in range(8)]


async def test_a_fleet_of_other_models_delays_and_fails_nothing_at_first(
    ai: AsyncOpenAI, live: Live, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the last worker of a model was restarted beside those of another, its lines failed; and a line
    had an hour from its own first try: behind more work than that it failed as well."""
    ask, missed = live.gateway.submit, []

    async def seen(*args: Any, **kwargs: Any) -> Any:
        try:
            return await ask(*args, **kwargs)
        except NotFound as missing:
            missed.append(missing)
            raise

    monkeypatch.setattr(live.gateway, "submit", seen)
    monkeypatch.setattr(batch_runner, "RETRY_S", 0.01)
    worker.card = CARD.model_copy(update={"model_id": "other"})
    worker.heartbeat()
    lines = jsonl(line("c", "/v1/chat/completions", model=CARD.model_id, messages=[USER]))
    batch = await submit(ai, lines, "/v1/chat/completions")
    await eventually(lambda: bool(missed))
    worker.card = CARD
    worker.heartbeat()
    assert (await ended(ai, batch.id)).request_counts.completed == 1
    assert [job.deadline_at for job in worker.jobs] == [batch.expires_at]
    monkeypatch.setattr(batch_runner, "MODEL_WAIT_S", 0)
    wrong = jsonl(line("c", "/v1/chat/completions", model="mistyped", messages=[USER]))
    batch = await ended(ai, (await submit(ai, wrong, "/v1/chat/completions")).id)
    (error,) = await results(ai, batch.error_file_id)
    assert error["response"]["body"]["error"]["code"] == "model_not_found"


async def test_an_empty_fleet_delays_and_fails_nothing(
    ai: AsyncOpenAI, live: Live, settings: GatewaySettings
) -> None:
    batch = await submit(ai, jsonl(line("p")))
    await asyncio.sleep(0)
    with ScriptedWorker(settings.redis):
        assert (await ended(ai, batch.id)).request_counts.completed == 1


async def test_a_batch_cancelled_between_two_runners_leaves_no_job(
    settings: GatewaySettings, ai: AsyncOpenAI, live: Live
) -> None:
    ScriptedWorker(settings.redis).heartbeat()  # one that is busy
    batch = await submit(ai, jsonl(*[line(f"c{number}") for number in range(6)]))

    async def waiting(count: int) -> None:
        async with asyncio.timeout(60):
            while (await live.gateway.broker.queue_stats()).waiting != count:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    await waiting(batch_runner.IN_FLIGHT)
    runner = live.app.state.batch_runner
    await end(runner._looking, *runner._running.values())
    await ai.batches.cancel(batch.id)
    runner.start()
    assert (await ended(ai, batch.id)).status == "cancelled"
    await waiting(0)
