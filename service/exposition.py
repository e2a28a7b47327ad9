"""Several Prometheus expositions as one: our own registry and those of other processes, fetched over HTTP.

Invariant: the result is valid whatever the parts hold: a family appears once, and samples of the other
processes carry a `worker` label, so equal series never meet. A process that does not answer is left out.
Knows no metric by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import httpx
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_FETCH_TIMEOUT_S = 2.0


async def render_metrics(registry: CollectorRegistry, extra_urls: Sequence[str] = ()) -> bytes:
    """Text format 0.0.4 (`prometheus_client.CONTENT_TYPE_LATEST`)."""
    families: dict[str, Metric] = {}
    _merge(families, registry.collect())
    for number, text in enumerate(await _fetch_all(extra_urls)):
        _merge(families, text_string_to_metric_families(text), {"worker": str(number)})
    return generate_latest(_Families(families.values()))


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _merge(families: dict[str, Metric], more: Iterable[Metric], labels: dict[str, str] | None = None) -> None:
    for family in more:
        # Creation times come as families of their own in the text format; they say nothing useful here.
        if family.name.endswith("_created"):
            continue
        merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                merged.samples.append(sample._replace(labels={**sample.labels, **(labels or {})}))


async def _fetch_all(urls: Sequence[str]) -> list[str]:
    if not urls:
        return []
    async with httpx.AsyncClient(timeout=_FETCH_TIMEOUT_S, trust_env=False) as client:
        return await asyncio.gather(*(_fetch(client, url) for url in urls))


async def _fetch(client: httpx.AsyncClient, url: str) -> str:
    try:
        response = await client.get(url)
        return response.text if response.is_success else ""
    except httpx.HTTPError:
        return ""
