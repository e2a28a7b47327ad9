"""`POST /v1/describe` where it is the fleet that falls short: no worker, its errors, what its card allows."""

from __future__ import annotations

import httpx
import pytest

from service.protocol import DynamicSize, ErrorData
from service.settings import GatewaySettings
from tests.service.gateway_fixture import in_process
from tests.service.pictures import encoded, noise
from tests.service.scripted_worker import CARD, ScriptedWorker, failing
from tests.service.test_describe import error_of, post_form, post_json


async def test_no_worker(client: httpx.AsyncClient) -> None:
    response = await post_json(client)
    assert error_of(response, 503)["code"] == "no_worker"
    assert int(response.headers["Retry-After"]) >= 1


async def test_a_draining_worker_is_none(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    worker.heartbeat(draining=True)
    error_of(await post_json(client), 503)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (ErrorData(message="boom", code="engine_failed"), 500, "server_error"),
        (ErrorData(message="late", code="deadline_exceeded"), 504, "server_error"),
        (
            ErrorData(
                message="too long", type="invalid_request_error", code="prompt_too_long", param="prompt"
            ),
            400,
            "invalid_request_error",
        ),
    ],
    ids=["engine", "deadline", "prompt"],
)
async def test_errors_of_the_worker(
    client: httpx.AsyncClient, worker: ScriptedWorker, error: ErrorData, status: int, kind: str
) -> None:
    worker.script = failing(error)
    told = error_of(await post_json(client), status)
    assert (told["message"], told["type"], told["code"]) == (error.message, kind, error.code)


async def test_a_job_nobody_finishes_ends_at_its_deadline(
    settings: GatewaySettings, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.gateway.DEADLINE_GRACE_S", 0.05)
    worker.hold()
    async with in_process(settings.model_copy(update={"request_timeout_s": 0.7})) as client:
        error_of(await post_json(client), 504)


async def test_card_without_a_twig(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    worker.card = CARD.model_copy(update={"speculation": False, "quality": {}})
    worker.heartbeat()
    assert error_of(await post_json(client, speculation=True), 400)["param"] == "speculation"
    assert "has: none" in error_of(await post_json(client, quality="fast"), 400)["message"]
    assert (await post_json(client)).status_code == 200
    assert not worker.jobs[0].params.speculation


OWN_SIZES = CARD.model_copy(
    update={
        "image": CARD.image.model_copy(
            update={"dynamic": DynamicSize(multiple=4, min_pixels=64, max_pixels=24 * 24)}
        )
    }
)


async def test_own_resolution(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    """A tier is a share of whatever M the picture has; a number of tokens is the worker's to judge."""
    worker.card = OWN_SIZES
    worker.heartbeat()
    wide = encoded(noise(40, 10), "PNG")
    assert (await post_form(client, wide, quality="fast")).status_code == 200
    assert (await post_form(client, wide, retained_tokens="35")).status_code == 200
    assert (await post_form(client, wide)).status_code == 200
    assert [(job.images[0].height, job.images[0].width) for job in worker.jobs] == [(8, 40)] * 3
    asked = [(job.params.retained_tokens, job.params.retained_share) for job in worker.jobs]
    assert asked == [(None, pytest.approx(8 / 36)), (35, None), (None, None)]
    refused = ErrorData(
        message="it must lie in 1..7", type="invalid_request_error", code="x", param="retained_tokens"
    )
    worker.script = failing(refused)
    error = error_of(await post_form(client, wide, retained_tokens="35"), 422)
    assert (error["code"], error["message"]) == ("impossible_retained_tokens", refused.message)
