"""`python -m loadtest` against a real gateway and a worker with the stub engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from service.broker.redis_gateway import RedisGatewayBroker
from service.embedded_redis import EmbeddedRedis
from service.ports import free_port
from tests.deploy.topology import answers, await_true
from tests.e2e.workers import STUB, environment, worker_processes
from tests.redis_fixture import redis_server, short_settings  # noqa: F401

pytestmark = [pytest.mark.e2e]


@pytest.fixture
async def url(redis_server: EmbeddedRedis) -> AsyncIterator[str]:  # noqa: F811
    settings = short_settings(redis_server.url)
    broker = RedisGatewayBroker(settings)
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "service.cli", "gateway", "--port", str(port)]
    async with worker_processes(STUB, 1, settings, broker, ready_s=60):
        gateway = subprocess.Popen(command, env=environment(settings))  # noqa: ASYNC220 - returns at once
        try:
            await_true(lambda: answers(f"http://127.0.0.1:{port}/readyz"), "the gateway")
            yield f"http://127.0.0.1:{port}"
        finally:
            gateway.terminate()
            gateway.wait(30)
    await broker.close()


def loadtest(url: str, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtest", "--url", url, "--out", str(out), *options]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=100, env=dict(os.environ), check=False
    )


async def test_a_scenario_reports_what_happened(url: str, tmp_path: Path) -> None:
    before = counted(url)
    done = loadtest(url, tmp_path, "--scenario=mixed", "--seconds=6", "--warmup=2", "--rate=5")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["scenario"] == "mixed"
    assert result["requests"] > 5
    assert result["errors"] == 0, result
    assert 0 < result["ttft_ms"]["p50"] <= result["ttft_ms"]["p99"] <= result["e2e_ms"]["p99"]
    assert result["tokens_per_s"] > 0
    assert result["acceptance"] == pytest.approx(6 / 9, abs=1e-3)
    assert 0 < result["pruned_ratio"] < 1
    assert_report(Path(result["report"]))
    assert counted(url) - before >= result["requests"]


def assert_report(path: Path) -> None:
    assert path.read_text().count("<svg") == 3
    assert "locust" in (path.parent / "locust.html").read_text()


def counted(url: str) -> float:
    lines = httpx.get(f"{url}/metrics", trust_env=False).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("twigvlm_request_success_total"))


def test_a_service_that_answers_nothing_ends_the_run_with_a_reason(tmp_path: Path) -> None:
    done = loadtest(f"http://127.0.0.1:{free_port('127.0.0.1')}", tmp_path, "--seconds=3", "--warmup=1")
    assert done.returncode == 1
    assert "answered nothing" in done.stderr


def test_bad_options_are_named(tmp_path: Path) -> None:
    done = loadtest("http://127.0.0.1:1", tmp_path, "--seconds=3", "--warmup=3")
    assert done.returncode == 2
    assert "--warmup" in done.stderr
