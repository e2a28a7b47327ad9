"""What a real request leaves behind: every metric of the design, and lines with its id in both logs."""

from __future__ import annotations

import logging

import httpx
import pytest
from prometheus_client import start_http_server
from prometheus_client.parser import text_string_to_metric_families

from service.settings import RedisSettings
from tests.service.gateway_fixture import Live, eventually
from tests.service.test_describe import post_form
from tests.service.worker_fixture import RunningWorker, running_worker

# Design, section 6: the names without their prefix; counters without `_total`.
GATEWAY = """
    request_success request_failure admission_rejections
    time_to_first_token_seconds e2e_request_latency_seconds request_preprocess_time_seconds
    queue_lag queue_pending queue_oldest_age_seconds queue_dead_letter build_info
"""
WORKER = """
    num_requests_running num_requests_waiting prompt_tokens generation_tokens
    image_tokens image_tokens_retained image_tokens_pruned image_token_layers image_token_layers_kept
    spec_decode_num_drafts spec_decode_num_draft_tokens spec_decode_num_accepted_tokens
    spec_decode_num_accepted_tokens_per_pos spec_decode_draft_stop
    inter_token_latency_seconds request_time_per_output_token_seconds
    request_queue_time_seconds request_encode_time_seconds request_prefill_time_seconds
    request_decode_time_seconds batch_size kv_cache_usage_ratio
    jobs_redelivered jobs_fenced jobs_poisoned jobs_cancelled jobs_expired build_info
"""
# Of these nothing is to be seen while nothing has gone wrong.
WITHOUT_SAMPLES = {"request_failure", "admission_rejections"}


async def exposed(url: str) -> dict[str, int]:
    """Family -> how many samples, without our prefix."""
    async with httpx.AsyncClient(timeout=60) as client:
        text = (await client.get(url)).text
    families = list(text_string_to_metric_families(text))
    return {family.name.removeprefix("twigvlm_"): len(family.samples) for family in families}


async def described(live: Live, worker: RunningWorker, request_id: str) -> None:
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
        while (await client.get("/readyz")).status_code != 200:
            pass
        client.headers["X-Request-ID"] = request_id
        response = await post_form(client, max_tokens=9)
        assert response.status_code == 200, response.text
    await eventually(lambda: worker.metric("generation_tokens_total") == 9)


async def test_every_metric_of_the_design(live: Live, redis_settings: RedisSettings) -> None:
    with running_worker(redis_settings) as worker:
        await described(live, worker, "r-1")
        server, thread = start_http_server(0, "127.0.0.1", worker.metrics.registry)
        theirs = await exposed(f"http://127.0.0.1:{server.server_port}/metrics")
        server.shutdown()
        server.server_close()
        thread.join()
    ours = await exposed(live.url + "/metrics")
    for wanted, have in ((GATEWAY, ours), (WORKER, theirs)):
        assert set(wanted.split()) <= set(have)
        assert {name for name in wanted.split() if not have[name]} <= WITHOUT_SAMPLES


async def test_one_request_id_in_every_log(
    live: Live, redis_settings: RedisSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with running_worker(redis_settings) as worker:
        await described(live, worker, "r-42")
        lines = [record for record in caplog.records if record.__dict__.get("request_id") == "r-42"]
    assert {(line.name, line.getMessage()) for line in lines} == {
        ("twigserve.gateway", "request"),
        ("twigserve.worker", "job begun"),
        ("twigserve.worker", "job done"),
    }
    assert len({line.__dict__["job_id"] for line in lines}) == 1
    request = next(line.__dict__ for line in lines if line.name == "twigserve.gateway")
    assert (request["method"], request["path"], request["status"]) == ("POST", "/v1/describe", 200)
    assert not [record for record in caplog.records if record.__dict__.get("path") == "/readyz"]
