"""What `twigserve check` asks: is the gateway alive or ready, does the worker's loop turn?

Invariant: a worker's probe asks the worker alone: a broker that is away must not get workers restarted.
"""

from __future__ import annotations

import contextlib
import time

import httpx
from prometheus_client.parser import text_string_to_metric_families

_TIMEOUT_S = 2.0
_LAST_ROUND = "twigvlm_worker_last_round_timestamp_seconds"


def gateway_problem(url: str, *, ready: bool) -> str | None:
    """None where all is well."""
    path = "/readyz" if ready else "/livez"
    answer = _get(url.rstrip("/") + path)
    return answer if isinstance(answer, str) else None


def worker_problem(metrics_url: str, max_age_s: float) -> str | None:
    """None where all is well."""
    answer = _get(metrics_url)
    if isinstance(answer, str):
        return answer
    with contextlib.suppress(ValueError):  # whatever else listens there
        for family in text_string_to_metric_families(answer.text):
            if family.name == _LAST_ROUND:
                age_s = time.time() - family.samples[0].value
                return None if age_s <= max_age_s else f"the main loop has not turned for {age_s:.0f} s"
    return f"{metrics_url} is not a worker's"


def _get(url: str) -> httpx.Response | str:
    try:
        response = httpx.get(url, timeout=_TIMEOUT_S, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"{url}: {type(error).__name__}"
    return response if response.status_code == 200 else f"{url}: HTTP {response.status_code}"
