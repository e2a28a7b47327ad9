"""How both clients set up httpx."""

from __future__ import annotations

from typing import Any

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_TIMEOUT_S = 10.0
ABANDON_TIMEOUT_S = 10.0


def http_options(url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """ValueError: what no try can mend."""
    _check(url)
    if api_key and not (api_key.isascii() and api_key.isprintable()):
        raise ValueError("the API key holds characters that no header can carry")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
    # How much may be asked at once is the service's to say (429), not the connections'.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    return {"base_url": url, "headers": headers, "timeout": timeout, "limits": limits}


def _check(url: str) -> None:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as odd:
        raise ValueError(f"{url} is no service's address: {odd}") from odd
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError(f"{url} is no service's address: it wants http:// or https:// and a host")
