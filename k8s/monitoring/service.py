"""The service dashboard: what clients get (rate, errors, duration), the queue, and what is filling up."""

from __future__ import annotations

from k8s.monitoring.grafana import Dashboard, Panel, Query, Row
from k8s.monitoring.promql import buckets, maximum, mean, metric, quantiles, rate, rate_of, total

ALL = "twigvlm_request_(success|failure)_total"
# What the objective counts: a client's own mistakes are no request of the service.
FAIR = rate_of(ALL, 'status!~"4.."')
FAULTS = "({} or vector(0)) / {}".format(rate("request_failure", 'status=~"5.."'), FAIR)
WAIT = f"max({metric('queue_expected_wait_seconds')} or {metric('queue_oldest_age_seconds')})"
REDIS = f"{maximum('redis_memory_used_bytes')} / ({maximum('redis_memory_limit_bytes')} > 0)"
FATES = ("redelivered", "fenced", "poisoned", "cancelled", "expired", "cancelled_waiting", "expired_waiting")

NOW = Row(
    "Now",
    (
        Panel("Requests", "Answered and refused.", (Query(rate_of(ALL)),), "reqps", "stat", 4),
        Panel(
            "Own failures",
            "5xx among the requests that were not the client's fault. The objective allows 0.5 %.",
            (Query(FAULTS),),
            "percentunit",
            "stat",
            4,
            limit=0.005,
        ),
        Panel(
            "First token, p95",
            "From the request's first byte.",
            quantiles("time_to_first_token_seconds", 0.95),
            "s",
            "stat",
            4,
        ),
        Panel(
            "Whole answer, p95",
            "From the request's first byte.",
            quantiles("e2e_request_latency_seconds", 0.95),
            "s",
            "stat",
            4,
        ),
        Panel(
            "Wait now", "What a request that comes now would wait.", (Query(WAIT),), "s", "stat", 4, limit=10
        ),
        Panel(
            "Workers",
            "With a live heartbeat.",
            (Query(maximum("workers_alive")),),
            "short",
            "stat",
            4,
            limit=1,
            below=True,
        ),
    ),
)

REQUESTS = Row(
    "Rate, errors, duration",
    (
        Panel(
            "Answers",
            "By how they ended.",
            (Query(rate("request_success", by="finished_reason"), "{{finished_reason}}"),),
            "reqps",
            stacked=True,
        ),
        Panel(
            "Errors",
            "By code; 4xx are the client's.",
            (Query(rate("request_failure", by="status, err"), "{{status}} {{err}}"),),
            "reqps",
            stacked=True,
        ),
        Panel(
            "Refused unread",
            "429, by what was full.",
            (Query(rate("admission_rejections", by="reason"), "{{reason}}"),),
            "reqps",
            stacked=True,
        ),
        Panel("First token", "As clients see it.", quantiles("time_to_first_token_seconds"), "s"),
        Panel("Whole answer", "As clients see it.", quantiles("e2e_request_latency_seconds"), "s"),
        Panel(
            "First token: where requests fall",
            "More requests, darker.",
            (Query(buckets("time_to_first_token_seconds"), "{{le}}"),),
            "s",
            "heatmap",
        ),
    ),
)

QUEUE = Row(
    "Queue",
    (
        Panel(
            "Jobs",
            "Waiting for a worker, and claimed by one.",
            (Query(maximum("queue_lag"), "waiting"), Query(maximum("queue_pending"), "running")),
            stacked=True,
        ),
        Panel(
            "Wait",
            "Of a request that comes now, and of the oldest that waits.",
            (Query(WAIT, "expected"), Query(maximum("queue_oldest_age_seconds"), "oldest")),
            "s",
            limit=10,
        ),
        Panel("Time queued", "Of jobs that ended.", quantiles("request_queue_time_seconds"), "s"),
        Panel(
            "What befell jobs",
            "Redelivered: their worker died. Fenced: their worker was too slow. Poisoned: given up.",
            tuple(Query(rate(f"jobs_{fate}"), fate.replace("_", " ")) for fate in FATES),
            "ops",
        ),
        Panel(
            "Given up",
            "Jobs in the dead-letter stream.",
            (Query(maximum("queue_dead_letter"), "jobs"),),
            limit=1,
        ),
    ),
)

SATURATION = Row(
    "Saturation",
    (
        Panel(
            "Slots",
            "Sequences in the batches, and claimed ones that wait for a place in one.",
            (
                Query(total("num_requests_running"), "running"),
                Query(total("num_requests_waiting"), "waiting"),
            ),
            stacked=True,
        ),
        Panel(
            "KV cache",
            "Used share, of the fullest worker and on average.",
            (
                Query(maximum("kv_cache_usage_ratio"), "fullest"),
                Query(f"avg({metric('kv_cache_usage_ratio')})", "average"),
            ),
            "percentunit",
            limit=0.95,
        ),
        Panel(
            "Redis memory",
            "Of maxmemory. A full Redis refuses jobs.",
            (Query(REDIS, "used"),),
            "percentunit",
            limit=0.8,
        ),
        Panel(
            "Preparing pictures",
            "Decoding and resizing in the gateway.",
            (
                Query(mean("request_preprocess_time_seconds"), "mean"),
                *quantiles("request_preprocess_time_seconds", 0.95),
            ),
            "s",
        ),
    ),
)

SERVICE = Dashboard(
    uid="twigserve-service",
    title="twigserve · service",
    text="What clients get, the queue, and what is filling up.",
    rows=(NOW, REQUESTS, QUEUE, SATURATION),
    choices=(("namespace", "twigvlm_build_info"),),
)
