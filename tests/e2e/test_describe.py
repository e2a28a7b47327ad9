"""The whole path over HTTP with real processes: gateway, Redis, worker, the embedded model.

In fp32, where a batch answers as its rows do alone: bf16 rounds differently with the number of rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.service_process import ROOT, ServiceProcess

SAMPLES = sorted((ROOT / "docs/samples").glob("*.png"))
PROMPTS = ("Describe the image.", "What is in the image?")
# Of all nouns of all samples: 27 of 28 with the present weights. Over many scenes it is nine in ten,
# see the model card. Raise it with better weights.
NAMED_SHARE = 0.9

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceProcess]:
    with ServiceProcess("--dtype", "float32") as running:
        yield running


@pytest.fixture(scope="module")
def client(service: ServiceProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=120) as running:
        yield running


def describe(client: httpx.Client, picture: Path, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/describe", files={"image": picture.read_bytes()}, data=fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def nouns(picture: Path) -> set[str]:
    truth = json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
    return {thing["noun"] for thing in truth["objects"]}


def counters(client: httpx.Client) -> dict[str, float]:
    """Each counter's sum over its labels."""
    sums: dict[str, float] = {}
    for line in client.get("/metrics").text.splitlines():
        if not line.startswith("#"):
            sample, value = line.rsplit(" ", 1)
            name = sample.partition("{")[0]
            sums[name] = sums.get(name, 0.0) + float(value)
    return sums


def test_samples_are_described_by_what_is_in_them(client: httpx.Client) -> None:
    named, told = 0, []
    for picture in SAMPLES:
        text = describe(client, picture)["text"]
        told.append(f"{picture.name}: {sorted(nouns(picture))}: {text}")
        named += sum(noun in text for noun in nouns(picture))
    assert named >= NAMED_SHARE * sum(len(nouns(picture)) for picture in SAMPLES), "\n".join(told)


def test_stream_and_plain_have_the_same_text(client: httpx.Client) -> None:
    plain = describe(client, SAMPLES[0])
    events: list[tuple[str, dict[str, Any]]] = []
    files, fields = {"image": SAMPLES[0].read_bytes()}, {"stream": "true"}
    with client.stream("POST", "/v1/describe", files=files, data=fields) as response:
        name = ""
        for line in response.iter_lines():
            key, _, value = line.partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                events.append((name, json.loads(value)))
    assert events[-1][0] == "done"
    assert events[-1][1]["text"] == plain["text"]
    assert "".join(data["text"] for name, data in events if name == "token") == plain["text"]
    tokens = sum(len(data["token_ids"]) for name, data in events if name == "token")
    assert tokens == plain["usage"]["completion_tokens"]


def test_sixteen_at_once_equal_their_solo_answers(client: httpx.Client) -> None:
    """Mixed pictures, prompts, budgets and speculation."""
    asked = [
        (
            SAMPLES[number % len(SAMPLES)],
            {
                "prompt": PROMPTS[number % 2],
                "max_tokens": 16 + 3 * number,
                "quality": ("fast", "balanced", "exact")[number % 3],
                "speculation": number % 5 != 0,
            },
        )
        for number in range(16)
    ]
    solo = [describe(client, picture, **fields) for picture, fields in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda one: describe(client, one[0], **one[1]), asked))
    assert [answer["text"] for answer in together] == [answer["text"] for answer in solo]
    assert max(answer["metrics"]["batch_size"] for answer in together) > 1


def test_counters_move(client: httpx.Client) -> None:
    before = counters(client)
    answer = describe(client, SAMPLES[0], quality="fast")
    after = counters(client)
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    spent = answer["metrics"]["speculative_decoding"]
    pruned = answer["usage"]["prompt_tokens_details"]["pruned_image_tokens"]
    assert spent["num_accepted_draft_tokens"] > 0
    assert pruned > 0
    assert grown["twigvlm_spec_decode_num_accepted_tokens_total"] == spent["num_accepted_draft_tokens"]
    assert grown["twigvlm_spec_decode_num_draft_tokens_total"] == spent["num_draft_tokens"]
    assert grown["twigvlm_image_tokens_pruned_total"] == pytest.approx(pruned, abs=1)
    assert grown["twigvlm_generation_tokens_total"] == answer["usage"]["completion_tokens"]
    assert grown["twigvlm_request_success_total"] == 1


def test_token_map_names_the_kept_patches(client: httpx.Client) -> None:
    token_map = describe(client, SAMPLES[0], quality="fast", include="token_map")["token_map"]
    rows, columns = token_map["grid"]
    assert len(token_map["scores"]) == rows * columns
    weakest_kept = min(token_map["scores"][index] for index in token_map["kept"])
    dropped = set(range(rows * columns)) - set(token_map["kept"])
    assert weakest_kept >= max(token_map["scores"][index] for index in dropped)


def test_it_stops_cleanly() -> None:
    with ServiceProcess("--dtype", "float32") as running:
        assert httpx.get(f"{running.url}/readyz", timeout=10).json()["workers"] == 1
        assert running.stop() == 0
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{running.url}/livez", timeout=2)
