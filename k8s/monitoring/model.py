"""The model dashboard: how fast tokens come, what speculation earns, what pruning saves."""

from __future__ import annotations

from k8s.monitoring.grafana import Dashboard, Panel, Query, Row
from k8s.monitoring.promql import WINDOW, buckets, maximum, mean, metric, quantiles, rate, ratio

HERE = ('instance=~"$instance"',)
ACCEPTANCE = ratio("spec_decode_num_accepted_tokens", "spec_decode_num_draft_tokens", *HERE)
AT_POSITION = (
    f"{rate('spec_decode_num_accepted_tokens_per_pos', *HERE, by='position')} "
    f"/ on() group_left {rate('spec_decode_num_drafts', *HERE)}"
)
PER_ROUND = f"1 + {ratio('spec_decode_num_accepted_tokens', 'spec_decode_num_drafts', *HERE)}"
ENDED_BY = (
    f"{rate('spec_decode_draft_stop', *HERE, by='reason')} "
    f"/ on() group_left {rate('spec_decode_draft_stop', *HERE)}"
)
# Drafts are counted when their request ends, rows as they go: for a moment there can be more drafts.
DRAFTED_ROUNDS = (
    f"clamp_max({rate('spec_decode_num_drafts', *HERE)} "
    f"/ sum(rate({metric('batch_size_sum', *HERE)}[{WINDOW}])), 1)"
)
PRUNED = ratio("image_tokens_pruned", "image_tokens", *HERE)
COMPUTED = ratio("image_token_layers_kept", "image_token_layers", *HERE)
STAGES = ("queue", "encode", "prefill", "decode")

THROUGHPUT = Row(
    "Throughput",
    (
        Panel(
            "Tokens generated",
            "All workers together.",
            (Query(rate("generation_tokens", *HERE), "tokens/s"),),
        ),
        Panel(
            "Prompt tokens",
            "Prefilled, text and visual.",
            (Query(rate("prompt_tokens", *HERE, by="kind"), "{{kind}}"),),
            stacked=True,
        ),
        Panel(
            "Rows of a round",
            "Sequences that advance together.",
            (Query(mean("batch_size", *HERE), "mean"), *quantiles("batch_size", 0.5, 0.95, matchers=HERE)),
        ),
    ),
)

LATENCY = Row(
    "Latency",
    (
        Panel(
            "Time to first token",
            "As clients see it, queue included; of all gateways.",
            quantiles("time_to_first_token_seconds"),
            "s",
        ),
        Panel(
            "Between tokens",
            "A round's time, shared by the tokens it gave.",
            quantiles("inter_token_latency_seconds", matchers=HERE),
            "s",
        ),
        Panel(
            "Per output token",
            "A request's decoding time over its tokens.",
            quantiles("request_time_per_output_token_seconds", matchers=HERE),
            "s",
        ),
        Panel(
            "Where the time goes",
            "Mean of a request.",
            tuple(Query(mean(f"request_{stage}_time_seconds", *HERE), stage) for stage in STAGES),
            "s",
            stacked=True,
        ),
        Panel(
            "KV cache",
            "Used share of the fullest worker.",
            (Query(maximum("kv_cache_usage_ratio", *HERE), "fullest"),),
            "percentunit",
            limit=0.95,
        ),
        Panel(
            "Sequences",
            "In a batch, and claimed ones that wait for a place.",
            (
                Query(f"sum({metric('num_requests_running', *HERE)})", "running"),
                Query(f"sum({metric('num_requests_waiting', *HERE)})", "waiting"),
            ),
            stacked=True,
        ),
    ),
)

SPECULATION = Row(
    "Speculation",
    (
        Panel(
            "Acceptance",
            "Drafted tokens that the base agreed with.",
            (Query(ACCEPTANCE, "accepted"),),
            "percentunit",
        ),
        Panel(
            "Acceptance by position",
            "Of all drafts, those whose token at this place was accepted; a shorter draft has none there.",
            (Query(AT_POSITION, "{{position}}"),),
            "percentunit",
        ),
        Panel(
            "Tokens a round",
            "Accepted drafts and the base's own token; 1 is what plain decoding gives.",
            (Query(PER_ROUND, "tokens"),),
        ),
        Panel(
            "Drafted and accepted",
            "The gap between them is work for nothing.",
            (
                Query(rate("spec_decode_num_draft_tokens", *HERE), "drafted"),
                Query(rate("spec_decode_num_accepted_tokens", *HERE), "accepted"),
            ),
        ),
        Panel(
            "Draft length",
            "Tokens drafted a round.",
            (Query(ratio("spec_decode_num_draft_tokens", "spec_decode_num_drafts", *HERE), "mean"),),
        ),
        Panel(
            "What ended drafts",
            "Confidence: the twig was unsure of its last token. Budget: the longest allowed. EOS: the end.",
            (Query(ENDED_BY, "{{reason}}"),),
            "percentunit",
            stacked=True,
        ),
        Panel(
            "Rounds with a draft",
            "Of all rows' rounds. Low: drafts do not pay at this load, or requests ask for none.",
            (Query(DRAFTED_ROUNDS, "drafted"),),
            "percentunit",
        ),
    ),
)

PRUNING = Row(
    "Pruning",
    (
        Panel(
            "Pruned",
            "Visual tokens left out, averaged over the layers; and what is left of the layers' visual work.",
            (Query(PRUNED, "pruned"), Query(COMPUTED, "computed")),
            "percentunit",
        ),
        Panel(
            "Visual tokens",
            "Of the pictures served, kept and left out, averaged over the layers.",
            (
                Query(rate("image_tokens_retained", *HERE), "kept"),
                Query(rate("image_tokens_pruned", *HERE), "left out"),
            ),
            stacked=True,
        ),
        Panel(
            "Retained tokens of a request",
            "The average over the layers that it asked for.",
            quantiles("request_image_tokens_retained", 0.1, 0.5, 0.9, matchers=HERE),
        ),
        Panel(
            "Retained tokens: where requests fall",
            "More requests, darker.",
            (Query(buckets("request_image_tokens_retained", *HERE), "{{le}}"),),
            "short",
            "heatmap",
        ),
    ),
)

MODEL = Dashboard(
    uid="twigserve-model",
    title="twigserve · model",
    text="How fast tokens come, what speculation earns, what pruning saves.",
    rows=(THROUGHPUT, LATENCY, SPECULATION, PRUNING),
    choices=(("namespace", "twigvlm_build_info"), ("instance", "twigvlm_num_requests_running")),
)
