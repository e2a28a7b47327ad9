"""Every metric the service exports, under `twigvlm_` with vLLM's names: a gateway's and a worker's.

Invariant: each object owns its registry; the two sides share no name but `build_info`; labels are bounded
(never a job, a key or a picture). Only counters and times are kept: ratios are for PromQL.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.admission import expected_wait_s
from service.broker.base import ClaimBatch, EndedWaiting
from service.exposition import render_metrics
from service.protocol import DoneData, QueueStats, WorkerInfo
from service.running import DraftCounts, EngineLoad

__all__ = ["GatewayMetrics", "WorkerMetrics", "render_metrics"]

TTFT_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5),
    *(5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_BUCKETS_S = (
    *(0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
    *(0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_BUCKETS_S = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0),
    *(10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0),
)
RETAINED_BUCKETS = (0, 16, 32, 48, 64, 96, 128, 160, 192, 256, 384, 576, 1152, 2304)
BATCH_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 64, 128)


class _Metrics:
    def __init__(self, component: str) -> None:
        self.registry = CollectorRegistry()
        labels = ("version", "component")
        info = Gauge("twigvlm_build_info", "Constant 1.", labels, registry=self.registry)
        info.labels(version("twigserve"), component).set(1)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter("twigvlm_" + name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge("twigvlm_" + name, text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram("twigvlm_" + name, text, registry=self.registry, buckets=buckets)


class GatewayMetrics(_Metrics):
    """What the client sees."""

    def __init__(self) -> None:
        super().__init__("gateway")
        # A background job counts once it has ended, where it was accepted: where that gateway left before,
        # nowhere. A batch's line counts with its result.
        self._success = self._counter(
            "request_success",
            "Requests, background jobs and lines of batches answered whole.",
            "finished_reason",
        )
        # status: what HTTP says (or would have said, in a stream), so that 5.. is the service's own fault.
        self._failure = self._counter(
            "request_failure",
            "Requests, background jobs and lines of batches answered with an error.",
            *("err", "status"),
        )
        self._rejection = self._counter("admission_rejections", "Requests refused unread.", "reason")
        self._ttft_s = self._histogram(
            "time_to_first_token_seconds", "Request to first token.", TTFT_BUCKETS_S
        )
        self._e2e_s = self._histogram(
            "e2e_request_latency_seconds", "Request to last token.", REQUEST_BUCKETS_S
        )
        self._preprocess_s = self._histogram(
            "request_preprocess_time_seconds", "Decoding and preparing the images.", REQUEST_BUCKETS_S
        )
        self._expected_wait_s = self._gauge(
            "queue_expected_wait_seconds",
            "Predicted tokens that wait / predicted tokens worked off a second.",
        )
        self._lag = self._gauge("queue_lag", "Jobs that wait for a worker.")
        self._pending = self._gauge("queue_pending", "Jobs claimed and unfinished.")
        self._oldest_s = self._gauge("queue_oldest_age_seconds", "Age of the oldest waiting job.")
        self._dead = self._gauge("queue_dead_letter", "Jobs given up after repeated failures.")
        self._workers = self._gauge("workers_alive", "Workers with a live heartbeat.")
        self._redis_used = self._gauge("redis_memory_used_bytes", "Memory that Redis uses.")
        self._redis_limit = self._gauge("redis_memory_limit_bytes", "Its maxmemory; 0: none.")

        self._ended_waiting = {
            fate: self._counter(f"jobs_{fate}_waiting", f"Jobs {fate} before a worker had them.")
            for fate in get_args(EndedWaiting)
        }

    def ended_waiting(self, counts: Mapping[EndedWaiting, int]) -> None:
        for fate, count in counts.items():
            self._ended_waiting[fate].inc(count)

    def succeeded(self, finish_reason: str, e2e_s: float | None = None, ttft_s: float | None = None) -> None:
        """The times: None where no client waits, for those of a queue would hide what a client sees."""
        self._success.labels(finish_reason).inc()
        if e2e_s is not None:
            self._e2e_s.observe(e2e_s)
        if ttft_s is not None:
            self._ttft_s.observe(ttft_s)

    def failed(self, code: str, status: int) -> None:
        self._failure.labels(code, str(status)).inc()

    def rejected(self, reason: str) -> None:
        self._rejection.labels(reason).inc()

    def preprocessed(self, seconds: float) -> None:
        self._preprocess_s.observe(seconds)

    def see_queue(self, queue: QueueStats, workers: list[WorkerInfo]) -> None:
        self._expected_wait_s.set(expected_wait_s(queue, workers))
        self._lag.set(queue.waiting)
        self._pending.set(queue.pending)
        self._oldest_s.set(queue.oldest_age_s)
        self._dead.set(queue.dead)
        self._workers.set(len(workers))
        self._redis_used.set(queue.memory_used_bytes)
        self._redis_limit.set(queue.memory_limit_bytes)


class WorkerMetrics(_Metrics):
    """What the engine did. `layers` is the base's L, for the token-layer counters."""

    def __init__(self, layers: int) -> None:
        super().__init__("worker")
        self._layers = layers
        self._running = self._gauge("num_requests_running", "Sequences in the batch.")
        self._waiting = self._gauge("num_requests_waiting", "Claimed, not yet in the batch.")
        self._kv_usage = self._gauge(
            "kv_cache_usage_ratio", "Share of the KV cache that running requests take at their longest."
        )
        self.last_round = self._gauge(
            "worker_last_round_timestamp_seconds", "When the main loop last turned."
        )
        self._batch_size = self._histogram("batch_size", "Rows of a round.", BATCH_BUCKETS)
        self._add_token_counters()
        self._add_times()
        self._jobs = {
            name: self._counter(f"jobs_{name}", f"Jobs {name}.")
            for name in ("redelivered", "fenced", "poisoned", "cancelled", "expired")
        }

    def _add_token_counters(self) -> None:
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens prefilled.", "kind")
        self._generated = self._counter("generation_tokens", "Tokens generated.")
        self._image = self._counter("image_tokens", "Visual tokens of the images served.")
        self._image_kept = self._counter("image_tokens_retained", "Of these kept, averaged over the layers.")
        self._image_pruned = self._counter(
            "image_tokens_pruned", "Of these pruned, averaged over the layers."
        )
        self._retained = self._histogram(
            "request_image_tokens_retained", "Kept visual tokens of a request (R-bar).", RETAINED_BUCKETS
        )
        self._layer_tokens = self._counter("image_token_layers", "Visual tokens times base layers.")
        self._layer_kept = self._counter("image_token_layers_kept", "Of these computed.")
        self._drafts = self._counter("spec_decode_num_drafts", "Rounds that verified a draft.")
        self._drafted = self._counter("spec_decode_num_draft_tokens", "Tokens drafted by the twig.")
        self._accepted = self._counter("spec_decode_num_accepted_tokens", "Drafts the base accepted.")
        self._accepted_at = self._counter(
            "spec_decode_num_accepted_tokens_per_pos", "Accepted drafts by place in the draft.", "position"
        )
        self._draft_stop = self._counter(
            "spec_decode_draft_stop", "Drafts by what ended them: eos, confidence or budget.", "reason"
        )

    def _add_times(self) -> None:
        self._inter_token_s = self._histogram(
            "inter_token_latency_seconds", "A round's time shared by its tokens.", TOKEN_BUCKETS_S
        )
        self._per_token_s = self._histogram(
            "request_time_per_output_token_seconds", "Decode time per token of a request.", TOKEN_BUCKETS_S
        )
        self._times_s = {
            name: self._histogram(f"request_{name}_time_seconds", f"Time in {name}.", REQUEST_BUCKETS_S)
            for name in ("queue", "encode", "prefill", "decode")
        }

    def claimed(self, batch: ClaimBatch) -> None:
        for name in ("redelivered", "cancelled", "expired", "poisoned"):
            self._jobs[name].inc(getattr(batch, name))

    def dropped(self, name: str) -> None:
        """name: fenced, cancelled or expired, while running here."""
        self._jobs[name].inc()

    def see_round(self, load: EngineLoad) -> None:
        self._running.set(load.running)
        self._waiting.set(load.waiting)
        self._kv_usage.set(load.kv_usage)
        if load.batch_size > 0:
            self._batch_size.observe(load.batch_size)

    def generated(self, tokens: int, gap_s: float | None) -> None:
        """gap_s: since the request's last tokens; None for its first."""
        self._generated.inc(tokens)
        if gap_s is not None:
            for _ in range(tokens):
                self._inter_token_s.observe(gap_s / tokens)

    def finished(self, done: DoneData, drafts: DraftCounts) -> None:
        self._count_prompt(done)
        self._drafts.inc(done.draft_rounds)
        self._drafted.inc(done.draft_tokens)
        self._accepted.inc(done.accepted_tokens)
        for position, accepted in enumerate(drafts.accepted_per_position):
            self._accepted_at.labels(str(position)).inc(accepted)
        for reason, rounds in drafts.stops.items():
            self._draft_stop.labels(reason).inc(rounds)
        for name, histogram in self._times_s.items():
            histogram.observe(getattr(done, f"{name}_s"))
        decoded = len(done.token_ids) - done.resumed_tokens - 1  # an attempt's first comes from its prefill
        if decoded > 0:
            self._per_token_s.observe(done.decode_s / decoded)

    def _count_prompt(self, done: DoneData) -> None:
        kept = min(done.retained_tokens, done.image_tokens)
        self._prompt_tokens.labels("text").inc(max(0, done.prompt_tokens - done.image_tokens))
        self._prompt_tokens.labels("image").inc(done.image_tokens)
        self._image.inc(done.image_tokens)
        self._image_kept.inc(kept)
        if done.image_tokens:
            self._retained.observe(kept)
        self._image_pruned.inc(done.image_tokens - kept)
        self._layer_tokens.inc(done.image_tokens * self._layers)
        self._layer_kept.inc(kept * self._layers)
