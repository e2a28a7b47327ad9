"""Pictures of any size over HTTP: the gateway's own resizing, the worker's processor, each image's own M."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from model.pruning import legal_range, share_of
from model.words import Words
from tests.e2e.service_process import ServiceProcess
from tests.model.families import Family, Question, write_llava_next, write_qwen
from tests.model.tiny import Shape
from tests.service.pictures import encoded

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
SHAPE = Shape(seed=3, upper_scale=0.5)
PROMPT = "is there a cat?"
MAX_TOKENS = 8
SIZES = [(30, 62), (61, 23), (44, 47)]


@pytest.fixture(scope="module", params=[write_qwen, write_llava_next])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    write: Callable[[Path, Shape], Family] = request.param
    return write(tmp_path_factory.mktemp(write.__name__), SHAPE)


@pytest.fixture(scope="module")
def client(family: Family) -> Iterator[httpx.Client]:
    options = ("--model", str(family.base_path), "--twig", str(family.twig_path), "--dtype", "float32")
    with ServiceProcess(*options) as service, httpx.Client(base_url=service.url, timeout=120) as client:
        yield client


def picture(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(4).integers(0, 256, (*size, 3), dtype=np.uint8))


def generated(family: Family, shown: Image.Image) -> tuple[str, int]:
    """transformers' answer from the untouched picture, and its visual tokens."""
    placeholder = family.vlm.config.image_token_id
    words = Words(family.base_path, placeholder, whole=False)
    short, tensors = words.prompt_token_ids(PROMPT, images=1), family.processed([shown])
    (features,) = family.features(tensors)
    at = short.index(placeholder)
    ids = short[:at] + [placeholder] * len(features) + short[at + 1 :]
    answer = family.generate(Question(ids, short, [shown], tensors), MAX_TOKENS)
    return family.tokenizer.decode(answer, skip_special_tokens=True), len(features)


def describe(client: httpx.Client, shown: Image.Image, **fields: Any) -> httpx.Response:
    data = {"prompt": PROMPT, "max_tokens": str(MAX_TOKENS), **fields}
    return client.post("/v1/describe", files={"image": encoded(shown, "PNG")}, data=data)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_answer_is_transformers_own(client: httpx.Client, family: Family, size: tuple[int, int]) -> None:
    shown = picture(size)
    text, tokens = generated(family, shown)
    answer = describe(client, shown, quality="exact", include="token_map").json()
    assert answer["text"] == text
    details = answer["usage"]["prompt_tokens_details"]
    assert (details["image_tokens"], details["pruned_image_tokens"]) == (tokens, 0)
    token_map = answer.get("token_map")
    if family.vlm.config.model_type == "qwen2_5_vl":
        rows, columns = token_map["grid"]
        assert rows * columns == tokens == len(token_map["kept"])
    else:
        assert token_map is None


@pytest.mark.parametrize("size", SIZES[:2], ids=str)
def test_tiers_are_shares_of_each_image(client: httpx.Client, family: Family, size: tuple[int, int]) -> None:
    shown = picture(size)
    _, tokens = generated(family, shown)
    (served,) = client.get("/v1/models").json()["data"]
    card = served["card"]
    place = (SHAPE.layers, tokens, family.twig.fork_layer, family.twig.drop_layer)
    for tier, retained in card["quality"].items():
        response = describe(client, shown, quality=tier)
        assert response.status_code == 200, response.text
        wanted = share_of(retained / card["image_tokens"], *place)
        details = response.json()["usage"]["prompt_tokens_details"]
        assert wanted <= details["retained_image_tokens"] <= wanted + 1
    low, high = legal_range(*place)
    refused = describe(client, shown, retained_tokens=str(high + 1))
    assert refused.status_code == 422
    error = refused.json()["error"]
    assert error["param"] == "retained_tokens"
    assert f"{low}..{high}" in error["message"]
