"""Requests through the load balancer to two gateways and two workers, watched by a real Prometheus."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image

from service.embedded_redis import EmbeddedRedis
from tests.deploy.topology import GATEWAYS, NGINX, PROMETHEUS, WORKERS, Topology, await_true
from tests.redis_fixture import short_settings
from tests.service.stub_engine import expected_tokens, text_of

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(NGINX is None, reason="no nginx on this machine")]


@pytest.fixture(scope="module")
def topology(redis_server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    folder: Path = tmp_path_factory.mktemp("topology")
    with Topology(folder, short_settings(redis_server.url)) as running:
        yield running


@pytest.fixture
def client(topology: Topology) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=topology.url, timeout=30, trust_env=False) as client:
        yield client


def picture() -> bytes:
    data = BytesIO()
    Image.new("RGB", (8, 8), "red").save(data, "PNG")
    return data.getvalue()


def describe(client: httpx.Client, prompt: str, tokens: int, *, stream: bool = False) -> httpx.Response:
    fields = {"prompt": prompt, "max_tokens": str(tokens), "stream": str(stream).lower()}
    return client.post("/v1/describe", data=fields, files={"image": ("red.png", picture(), "image/png")})


def test_requests_are_answered_through_the_load_balancer(client: httpx.Client) -> None:
    for number in range(6):
        prompt = f"question {number}"
        answer = describe(client, prompt, 5)
        assert answer.status_code == 200, answer.text
        assert answer.json()["text"] == text_of(expected_tokens(prompt, 5))


def test_streams_pass_whole(client: httpx.Client) -> None:
    answer = describe(client, "a stream", 12, stream=True)
    assert answer.status_code == 200, answer.text
    blocks = [block.splitlines() for block in answer.text.split("\n\n") if "event: " in block]
    events = [(lines[1], json.loads(lines[2].removeprefix("data: "))) for lines in blocks]
    text = "".join(data["text"] for name, data in events if name == "event: token")
    assert events[-1][0] == "event: done"
    assert text == events[-1][1]["text"] == text_of(expected_tokens("a stream", 12))


@pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus on this machine")
def test_prometheus_sees_every_process_and_what_it_did(topology: Topology, client: httpx.Client) -> None:
    assert describe(client, "counted", 5).status_code == 200
    everyone = len(GATEWAYS) + len(WORKERS)
    await_true(lambda: topology.query("sum(up)") == [everyone], "every target up")
    await_true(lambda: topology.query("sum(twigvlm_generation_tokens_total) >= 5") != [], "tokens counted")
    await_true(lambda: topology.query("sum(twigvlm_request_success_total) >= 1") != [], "answers counted")
    assert topology.query("max(twigvlm_workers_alive)") == [len(WORKERS)]


@pytest.mark.parametrize("name", GATEWAYS)
def test_a_killed_gateway_costs_no_later_request(topology: Topology, client: httpx.Client, name: str) -> None:
    topology.kill(name)
    try:
        answers = [describe(client, f"without {name}, {number}", 3) for number in range(4)]
        assert [answer.status_code for answer in answers] == [200] * 4, [answer.text for answer in answers]
    finally:
        topology.start(name)
        topology.await_gateway(name)
