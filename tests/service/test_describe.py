"""`POST /v1/describe` in process: the answer, and every way to ask wrongly (streams: test_describe_live)."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.protocol import DynamicSize, ErrorData
from service.settings import GatewaySettings
from tests.service.gateway_fixture import in_process
from tests.service.pictures import encoded, huge_png, noise
from tests.service.scripted_worker import CARD, ScriptedWorker, failing

URL = "/v1/describe"
PNG = encoded(noise(40, 30), "PNG")
PNG64 = base64.b64encode(PNG).decode()


async def post_form(client: httpx.AsyncClient, image: Any = PNG, **fields: Any) -> httpx.Response:
    return await client.post(URL, files={"image": ("picture.png", image)}, data=fields)


async def post_json(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post(URL, json={"image": PNG64} | fields)


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The one error shape, on every error."""
    assert response.status_code == status, response.text
    assert response.headers["X-Request-ID"]
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "code", "param"}
    assert "Traceback" not in response.text
    if status < 500:
        assert body["error"]["type"] in ("invalid_request_error", "rate_limit_error")
    return body["error"]


# --- the answer --------------------------------------------------------------------------------------


async def test_the_answer_is_whole(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    response = await post_form(client, quality="balanced")
    assert response.status_code == 200, response.text
    timing = dict(part.split(";dur=") for part in response.headers["Server-Timing"].split(", "))
    assert (timing["queue"], timing["encode"], timing["prefill"], timing["decode"]) == ("1", "2", "3", "500")
    assert float(timing["total"]) > 0
    answer = response.json()
    metrics = answer.pop("metrics")
    assert metrics.pop("time_to_first_token_ms") > 0
    assert answer.pop("id") == worker.jobs[0].id
    assert answer.pop("created") == int(worker.jobs[0].created_at)
    assert answer == {
        "object": "description",
        "model": "scripted",
        "text": "A small red apple.",
        "finish_reason": "stop",
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
    assert metrics == {
        "queue_ms": 1.0,
        "encode_ms": 2.0,
        "prefill_ms": 3.0,
        "decode_ms": 500.0,
        "tokens_per_second": 6.0,
        "batch_size": 2,
        "attempt": 1,
        "speculative_decoding": {
            "num_draft_tokens": 10,
            "num_accepted_draft_tokens": 6,
            "draft_acceptance_rate": 0.6,
            "mean_acceptance_length": 2.5,
        },
    }


async def test_form_and_json_ask_for_the_same(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    fields = {
        "prompt": "Où est l'été?",
        "max_tokens": 7,
        "temperature": 0.7,
        "top_p": 0.5,
        "top_k": 3,
        "seed": 4,
        "stop": ["."],
    }
    fields |= {"retained_tokens": 12, "speculation": False, "include": "token_map"}
    assert (await post_form(client, **fields)).status_code == 200
    assert (await post_json(client, **fields)).status_code == 200
    form, json_ = worker.jobs
    assert form.prompt == fields["prompt"]
    assert form.params.max_tokens == 7
    assert (form.params.temperature, form.params.top_p, form.params.top_k) == (0.7, 0.5, 3)
    assert (form.params.seed, form.params.stop) == (4, (".",))
    assert form.params.retained_tokens == 12
    assert not form.params.speculation
    assert form.params.token_map
    assert (form.params, form.prompt, form.images) == (json_.params, json_.prompt, json_.images)


async def test_defaults_leave_the_worker_its_own(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    assert (await post_json(client)).status_code == 200
    (job,) = worker.jobs
    assert job.prompt == "Describe the image."
    assert (job.params.max_tokens, job.params.retained_tokens, job.params.speculation) == (128, None, True)
    assert job.deadline_at == pytest.approx(job.created_at + 20)


async def test_the_worker_gets_pixels_never_the_file(
    client: httpx.AsyncClient, worker: ScriptedWorker
) -> None:
    await post_form(client)
    expected = Image.open(BytesIO(PNG)).resize((24, 24), Image.Resampling.BICUBIC)
    assert worker.blobs == [np.asarray(expected).tobytes()]
    assert (worker.jobs[0].images[0].height, worker.jobs[0].images[0].width) == (24, 24)


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "data:;base64,"])
async def test_base64_and_data_urls(client: httpx.AsyncClient, worker: ScriptedWorker, prefix: str) -> None:
    assert (await post_json(client, image=prefix + PNG64)).status_code == 200


async def test_two_images(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    """R-bar is over all images, a tier is for each."""
    assert (await post_json(client, image=[PNG64, PNG64], quality="fast")).status_code == 200
    other = encoded(noise(9, 9), "JPEG")
    files = [("image", ("a.png", PNG)), ("image", ("b.jpg", other))]
    assert (await client.post(URL, files=files, data={"retained_tokens": 60})).status_code == 200
    assert [job.params.retained_tokens for job in worker.jobs] == [16, 60]
    assert len({image.sha256 for image in worker.jobs[1].images}) == 2


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
async def test_one_pixel_is_no_picture(
    client: httpx.AsyncClient, worker: ScriptedWorker, format_name: str
) -> None:
    """It was blown up to a plain square and described, at the price of a picture."""
    response = await post_form(client, encoded(Image.new("RGB", (1, 1), (9, 8, 7)), format_name))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (422, "image_too_small", "image")
    assert not worker.jobs


async def test_two_pixels_are_a_picture(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    response = await post_form(client, encoded(Image.new("RGB", (1, 2), (9, 8, 7)), "PNG"))
    assert response.status_code == 200
    assert worker.blobs == [bytes((9, 8, 7)) * (24 * 24)]


async def test_token_map(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    answer = (await post_json(client, include=["token_map"])).json()
    assert answer["token_map"] == {"grid": [6, 6], "kept": [1, 5, 9], "scores": [0.5] * 36}
    assert "token_map" not in (await post_json(client)).json()


async def test_request_id_is_kept_or_made(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    kept = await client.post(URL, json={"image": PNG64}, headers={"X-Request-ID": "abc-1.2_Z"})
    assert kept.headers["X-Request-ID"] == "abc-1.2_Z" == worker.jobs[0].request_id
    made = await client.post(URL, json={"image": PNG64}, headers={"X-Request-ID": "no spaces, please" * 20})
    assert len(made.headers["X-Request-ID"]) == 32


# --- asking wrongly ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"colour": "red"}, "colour", "Unknown field: 'colour'"),
        ({"max_tokens": "many"}, "max_tokens", "integer"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 257}, "max_tokens", "at most 256"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "warm"}, "temperature", "number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"top_k": -1}, "top_k", "greater than or equal to 0"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"stop": [""]}, "stop", "at least 1"),
        ({"stop": ["x" * 257]}, "stop", "at most 256"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4"),
        ({"stream": "perhaps"}, "stream", "boolean"),
        ({"prompt": ""}, "prompt", "at least 1"),
        ({"prompt": "x" * 1001}, "prompt", "1000"),
        ({"quality": "superb"}, "quality", "has: fast, balanced, exact"),
        ({"quality": "fast", "retained_tokens": 8}, "retained_tokens", "not both"),
        ({"retained_tokens": "few"}, "retained_tokens", "integer"),
        ({"retained_tokens": -1}, "retained_tokens", "greater than or equal to 0"),
        ({"include": "secrets"}, "include", "token_map"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
async def test_bad_fields(
    client: httpx.AsyncClient, worker: ScriptedWorker, fields: dict[str, Any], param: str, says: str
) -> None:
    """The same mistake gets the same answer in both content types."""
    for response in (await post_json(client, **fields), await post_form(client, **fields)):
        error = error_of(response, 400)
        assert error["param"] == param
        assert says in error["message"]
    assert worker.jobs == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": "12"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stream": "true"}, "stream"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"stop": [1]}, "stop"),
        ({"image": 5}, "image"),
        ({"image": []}, "image"),
        ({"image": [None]}, "image"),
        ({"image": {"url": "x"}}, "image"),
        ({"seed": 2**63}, "seed"),
        ({"top_k": 10**30}, "top_k"),
    ],
    ids=str,
)
async def test_json_types_are_strict(
    client: httpx.AsyncClient, worker: ScriptedWorker, fields: dict[str, Any], param: str
) -> None:
    assert error_of(await post_json(client, **fields), 400)["param"] == param


@pytest.mark.parametrize("asked", [3, 31, 35, 37, 1000])
async def test_impossible_retained_tokens(
    client: httpx.AsyncClient, worker: ScriptedWorker, asked: int
) -> None:
    error = error_of(await post_json(client, retained_tokens=asked), 422)
    assert error["param"] == "retained_tokens"
    assert error["code"] == "impossible_retained_tokens"
    assert "4 to 30, or 36 for no pruning" in error["message"]


@pytest.mark.parametrize("asked", [4, 30, 36])
async def test_retained_tokens_at_the_limits(
    client: httpx.AsyncClient, worker: ScriptedWorker, asked: int
) -> None:
    assert (await post_json(client, retained_tokens=asked)).status_code == 200


@pytest.mark.parametrize(
    ("image", "status", "code"),
    [
        (b"", 422, "undecodable_image"),
        (encoded(noise(90, 90), "JPEG")[:900], 422, "undecodable_image"),
        (PNG[:100], 422, "undecodable_image"),
        (b"this is not a picture, whatever its name says", 415, "unsupported_image_format"),
        (huge_png(20_000, 20_000), 413, "image_too_large"),
        (huge_png(1001, 1000), 413, "image_too_large"),
        (PNG + bytes(200_000), 413, "image_too_large"),
    ],
    ids=["empty", "truncated-jpeg", "truncated-png", "text", "20000x20000", "pixels", "bytes"],
)
async def test_bad_pictures(
    client: httpx.AsyncClient, worker: ScriptedWorker, image: bytes, status: int, code: str
) -> None:
    form = await client.post(URL, files={"image": ("picture.jpg", image, "image/jpeg")})
    for response in (form, await post_json(client, image=base64.b64encode(image).decode())):
        error = error_of(response, status)
        assert (error["code"], error["param"]) == (code, "image")
    assert worker.jobs == []


@pytest.mark.parametrize(
    "image",
    [
        "not base64!",
        "QUJD=A",
        "ABC",
        "https://example.org/cat.png",
        "data:image/png,raw",
        "data:image/png",
        "é",
    ],
)
async def test_bad_base64(client: httpx.AsyncClient, worker: ScriptedWorker, image: str) -> None:
    assert error_of(await post_json(client, image=image), 400)["param"] == "image"


async def test_too_many_images(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    error = error_of(await post_json(client, image=[PNG64] * 3), 400)
    assert "at most 2" in error["message"]


async def test_missing_image(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    for response in (
        await client.post(URL, json={"prompt": "?"}),
        await client.post(URL, files={"prompt": (None, "?")}),
    ):
        error = error_of(response, 400)
        assert (error["param"], error["code"]) == ("image", "missing_field")


@pytest.mark.parametrize(
    ("files", "param"),
    [
        ({"file": ("a.png", PNG)}, "file"),
        ({"prompt": ("a.png", PNG), "image": ("a.png", PNG)}, "prompt"),
        ({"image": (None, PNG64)}, "image"),
    ],
    ids=["other-name", "text-as-file", "image-as-text"],
)
async def test_misplaced_parts(
    client: httpx.AsyncClient, worker: ScriptedWorker, files: dict[str, Any], param: str
) -> None:
    assert error_of(await client.post(URL, files=files), 400)["param"] == param


async def test_repeated_form_field(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    assert error_of(await post_form(client, prompt=["a", "b"]), 400)["param"] == "prompt"


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"", None, 400),
        (b"", "application/json", 400),
        (b"", "multipart/form-data; boundary=x", 400),
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'"text"', "application/json", 400),
        (b"null", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"image": "\\ud800"}', "application/json", 400),
        (b"rubbish", "multipart/form-data; boundary=x", 400),
        (b"rubbish", "multipart/form-data", 400),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\n\r\n--x--", "multipart/form-data; boundary=x", 400),
        (b"image=x", "application/x-www-form-urlencoded", 415),
        (PNG, "image/png", 415),
        (b"{}", "text/plain", 415),
    ],
    ids=str,
)
async def test_bad_bodies(
    client: httpx.AsyncClient, worker: ScriptedWorker, content: bytes, content_type: str | None, status: int
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    error_of(await client.post(URL, content=content, headers=headers), status)


async def test_body_over_the_limit(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    """By Content-Length, and, where none is sent, by what came."""

    async def chunks() -> Any:
        for _ in range(40):
            yield bytes(65_536)

    for content in (bytes(40 * 65_536), chunks()):
        error = error_of(
            await client.post(URL, content=content, headers={"Content-Type": "application/json"}), 413
        )
        assert error["code"] == "body_too_large"


# --- the service itself ------------------------------------------------------------------------------


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
