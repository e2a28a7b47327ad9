"""`POST /v1/describe` asked wrongly: which status, which field is named, and that no worker sees it."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest

from tests.service.pictures import encoded, huge_png, noise
from tests.service.scripted_worker import ScriptedWorker
from tests.service.test_describe import PNG, PNG64, URL, error_of, post_form, post_json


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
        ({"seed": -(2**63) - 1}, "seed", "greater than or equal to -9223372036854775808"),
        ({"stop": [""]}, "stop", "'stop[0]': String should have at least 1"),
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
        ({"image": [PNG64] * 65}, "image"),
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
