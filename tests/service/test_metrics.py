"""Metrics: two registries whose expositions can be joined, and the probe that reads one."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import pytest
from prometheus_client import start_http_server
from prometheus_client.parser import text_string_to_metric_families

from service.log import JsonFormatter
from service.metrics import GatewayMetrics, WorkerMetrics, render_metrics
from service.probe import worker_problem
from service.protocol import DoneData, QueueStats
from service.running import DraftCounts

DONE = DoneData(text="t", token_ids=(1, 2, 3), finish_reason="stop", prompt_tokens=20, image_tokens=16)


@pytest.fixture
def exposed() -> Iterator[tuple[WorkerMetrics, str]]:
    metrics = WorkerMetrics(layers=8)
    server, thread = start_http_server(0, "127.0.0.1", metrics.registry)
    yield metrics, f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    server.server_close()
    thread.join()


async def test_the_workers_exposition_is_appended(exposed: tuple[WorkerMetrics, str]):
    worker, url = exposed
    worker.finished(
        DONE.model_copy(update={"retained_tokens": 4.0, "draft_tokens": 5}), DraftCounts([2, 1], {"eos": 3})
    )
    gateway = GatewayMetrics()
    gateway.succeeded("stop", e2e_s=0.5, ttft_s=0.1)
    gateway.see_queue(QueueStats(waiting=2, pending=1, oldest_age_s=3.0, dead=4), [])
    body = (await render_metrics(gateway.registry, [url, url])).decode()
    samples = {
        (sample.name, sample.labels.get("worker")): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }
    assert samples["twigvlm_queue_lag", None] == 2
    assert samples["twigvlm_image_tokens_pruned_total", "0"] == 12
    assert samples["twigvlm_image_tokens_pruned_total", "1"] == 12
    assert samples["twigvlm_spec_decode_num_draft_tokens_total", "0"] == 5
    stopped = 'twigvlm_spec_decode_draft_stop_total{reason="eos",worker="0"} 3.0'
    assert stopped in body
    assert body.count("# TYPE twigvlm_build_info") == 1
    assert not [name for name, _ in samples if name.endswith("_created")]


async def test_a_worker_that_does_not_answer_is_left_out():
    body = await render_metrics(GatewayMetrics().registry, ["http://127.0.0.1:9/metrics"])
    assert b"twigvlm_queue_lag" in body


def test_the_two_sides_share_only_the_build_info():
    names = [
        {family.name for family in metrics.registry.collect()}
        for metrics in (GatewayMetrics(), WorkerMetrics(1))
    ]
    assert names[0] & names[1] == {"twigvlm_build_info"}


def test_the_probe_sees_a_loop_that_stands(exposed: tuple[WorkerMetrics, str]):
    metrics, url = exposed
    metrics.last_round.set_to_current_time()
    assert worker_problem(url, 60) is None
    metrics.last_round.set(time.time() - 100)
    assert "has not turned for 100 s" in (worker_problem(url, 60) or "")
    assert worker_problem("http://127.0.0.1:9/metrics", 60) is not None


def test_a_log_line_is_json_without_what_the_user_sent():
    record = logging.makeLogRecord({"name": "n", "msg": "done", "levelname": "INFO"})
    record.__dict__ |= {"job_id": "j", "prompt": "my secret", "image": b"bytes"}
    line = JsonFormatter().format(record)
    assert '"job_id": "j"' in line
    assert "secret" not in line
    assert "bytes" not in line


PROMISED = {
    "gateway": """request_success request_failure admission_rejections time_to_first_token_seconds
        e2e_request_latency_seconds request_preprocess_time_seconds queue_lag queue_pending
        queue_oldest_age_seconds queue_dead_letter queue_expected_wait_seconds jobs_cancelled_waiting
        jobs_expired_waiting build_info""",
    "worker": """num_requests_running num_requests_waiting prompt_tokens generation_tokens image_tokens
        image_tokens_retained image_tokens_pruned image_token_layers image_token_layers_kept
        spec_decode_num_drafts spec_decode_num_draft_tokens spec_decode_num_accepted_tokens
        spec_decode_num_accepted_tokens_per_pos spec_decode_draft_stop inter_token_latency_seconds
        request_time_per_output_token_seconds request_queue_time_seconds request_encode_time_seconds
        request_prefill_time_seconds request_decode_time_seconds batch_size kv_cache_usage_ratio
        jobs_redelivered jobs_fenced jobs_poisoned jobs_cancelled jobs_expired build_info""",
}


@pytest.mark.parametrize("side", PROMISED)
def test_every_metric_that_dashboards_and_alerts_may_name(side: str):
    metrics = GatewayMetrics() if side == "gateway" else WorkerMetrics(1)
    names = {family.name for family in metrics.registry.collect()}
    assert {"twigvlm_" + name for name in PROMISED[side].split()} <= names
