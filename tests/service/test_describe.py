"""`POST /v1/describe` in process: the answer, and every way to ask wrongly (streams: test_describe_live)."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.protocol import Job
from tests.service.pictures import encoded, noise
from tests.service.scripted_worker import ScriptedWorker

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
    assert (form.params, form.prompt) == (json_.params, json_.prompt)
    assert digests(form) == digests(json_)


def digests(job: Job) -> list[str]:
    """Of its pictures, which are named after the job as well."""
    return [image.sha256.removeprefix(f"{job.id}:") for image in job.images]


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
