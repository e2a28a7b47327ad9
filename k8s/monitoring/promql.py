"""The few shapes of PromQL that the panels are made of.

Invariant: every selector is held to `$namespace`, so that one Grafana can watch several installations; where
there is no such label (the compose file) its value `.*` matches that too. Matchers come as `label="value"`.
"""

from __future__ import annotations

from k8s.monitoring.grafana import Query

PREFIX = "twigvlm_"
WINDOW = "$__rate_interval"
NAMESPACE = 'namespace=~"$namespace"'


def metric(name: str, *matchers: str) -> str:
    return f"{PREFIX}{name}{{{', '.join((NAMESPACE, *matchers))}}}"


def total(name: str, *matchers: str, by: str = "") -> str:
    return f"{_sum(by)}({metric(name, *matchers)})"


def maximum(name: str, *matchers: str) -> str:
    """Of what every gateway tells alike."""
    return f"max({metric(name, *matchers)})"


def rate(name: str, *matchers: str, by: str = "") -> str:
    """Of a counter (its name without `_total`), summed by these labels."""
    return f"{_sum(by)}(rate({metric(name + '_total', *matchers)}[{WINDOW}]))"


def rate_of(names: str, *matchers: str) -> str:
    """Of all counters whose full names match."""
    named = f'__name__=~"{names}"'
    return f"sum(rate({{{', '.join((named, NAMESPACE, *matchers))}}}[{WINDOW}]))"


def ratio(part: str, whole: str, *matchers: str, by: str = "") -> str:
    """Of two counters' rates."""
    return f"{rate(part, *matchers, by=by)} / {rate(whole, *matchers, by=by)}"


def quantile(q: float, name: str, *matchers: str) -> str:
    return f"histogram_quantile({q}, sum by (le) (rate({metric(name + '_bucket', *matchers)}[{WINDOW}])))"


def quantiles(name: str, *qs: float, matchers: tuple[str, ...] = ()) -> tuple[Query, ...]:
    """p50, p95 and p99 unless told otherwise."""
    return tuple(Query(quantile(q, name, *matchers), f"p{q * 100:g}") for q in qs or (0.5, 0.95, 0.99))


def mean(name: str, *matchers: str) -> str:
    parts = (f"sum(rate({metric(f'{name}_{part}', *matchers)}[{WINDOW}]))" for part in ("sum", "count"))
    return " / ".join(parts)


def buckets(name: str, *matchers: str) -> str:
    return f"sum by (le) (increase({metric(name + '_bucket', *matchers)}[{WINDOW}]))"


def _sum(by: str) -> str:
    return f"sum by ({by}) " if by else "sum"
