"""The fleet dashboard: each process beside the others, so that the odd one shows."""

from __future__ import annotations

from k8s.monitoring.grafana import Dashboard, Panel, Query, Row
from k8s.monitoring.promql import NAMESPACE, metric, rate, ratio, total

# `worker` is there where one gateway tells of several workers (`twigserve serve`).
EACH = "instance, worker"
NAME = "{{instance}} {{worker}}"

PROCESSES = Row(
    "Processes",
    (
        Panel(
            "Running",
            "Processes by kind and version; two versions at once is a rollout.",
            (Query(total("build_info", by="component, version"), "{{component}} {{version}}"),),
            kind="table",
        ),
        Panel(
            "Scraped",
            "Targets that answered Prometheus.",
            (Query(f'sum by (job) (up{{job=~".*twigserve.*", {NAMESPACE}}})', "{{job}}"),),
        ),
        Panel(
            "Since the last round",
            "Of each worker's main loop. A worker that stalls is restarted by its probe.",
            (Query(f"time() - {metric('worker_last_round_timestamp_seconds')}", NAME),),
            "s",
            limit=60,
        ),
    ),
)

WORKERS = Row(
    "Workers",
    (
        Panel(
            "Tokens generated", "By worker.", (Query(rate("generation_tokens", by=EACH), NAME),), stacked=True
        ),
        Panel("Sequences", "In each worker's batch.", (Query(total("num_requests_running", by=EACH), NAME),)),
        Panel(
            "KV cache",
            "Used share.",
            (Query(metric("kv_cache_usage_ratio"), NAME),),
            "percentunit",
            limit=0.95,
        ),
        Panel(
            "Acceptance",
            "By worker; the same model everywhere should give the same.",
            (Query(ratio("spec_decode_num_accepted_tokens", "spec_decode_num_draft_tokens", by=EACH), NAME),),
            "percentunit",
        ),
        Panel(
            "Taken over and lost",
            "Jobs that came from another worker, and jobs whose lease went to another.",
            (
                Query(rate("jobs_redelivered", by=EACH), f"taken over {NAME}"),
                Query(rate("jobs_fenced", by=EACH), f"lost {NAME}"),
            ),
            "ops",
        ),
    ),
)

GATEWAYS = Row(
    "Gateways",
    (
        Panel(
            "Answers",
            "By gateway; the load balancer counts what is open.",
            (Query(rate("request_success", by="instance"), "{{instance}}"),),
            "reqps",
            stacked=True,
        ),
        Panel(
            "Errors",
            "By gateway.",
            (Query(rate("request_failure", by="instance"), "{{instance}}"),),
            "reqps",
            stacked=True,
        ),
    ),
)

FLEET = Dashboard(
    uid="twigserve-fleet",
    title="twigserve · fleet",
    text="Each process beside the others, so that the odd one shows.",
    rows=(PROCESSES, WORKERS, GATEWAYS),
    choices=(("namespace", "twigvlm_build_info"),),
)
