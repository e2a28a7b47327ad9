"""Who may use the API: `Authorization: Bearer <key>` on every path under /v1/, and the key's request rate.

Invariant: where keys are used, `request.state.caller` is set below this on every such request; a refused one
never reaches a route. Probes, metrics, the page and the documentation are open: they show nobody's jobs.
Must not know: how keys are kept, what a route does.
Source of the `x-ratelimit-*` headers: OpenAI API reference, "Rate limits".
"""

from __future__ import annotations

import math

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.broker.base import Rate
from service.callers import Caller
from service.errors import ApiError, RateLimited, TooBusy, Unauthorized, error_response
from service.gateway import Gateway
from service.keys import KeyRing
from service.middleware import drain, header
from service.openapi import GUARDED
from service.queue_errors import queue_errors


class Authentication:
    """ring: None where no keys are used."""

    def __init__(self, app: ASGIApp, ring: KeyRing | None) -> None:
        self._app = app
        self._ring = ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(GUARDED):
            await self._app(scope, receive, send)
            return
        if self._ring is None:
            await self._app(scope, receive, send)  # `caller_of` knows
            return
        gateway: Gateway = scope["app"].state.gateway
        told: dict[str, str] = {}
        try:
            caller = _caller(self._ring, header(scope, b"authorization").decode("latin-1"))
            if scope["method"] == "POST" and caller.requests_per_minute is not None:
                await _spend(gateway, caller.name, caller.requests_per_minute, told)
        except ApiError as error:
            gateway.metrics.failed(error.code, error.status)
            if isinstance(error, TooBusy):
                gateway.metrics.rejected(error.code)
            await drain(receive)
            await error_response(Request(scope), error)(scope, receive, _telling(send, told))
            return
        scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, _telling(send, told))


def _caller(ring: KeyRing, authorization: str) -> Caller:
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        message = "An API key is needed: send 'Authorization: Bearer <key>'."
        raise Unauthorized(message, code="missing_api_key")
    caller = ring.caller(key.strip())
    if caller is None:
        raise Unauthorized("This API key is not known.")
    return caller


async def _spend(gateway: Gateway, owner: str, per_minute: int, told: dict[str, str]) -> None:
    """One request of the key's minute; `told` is what the client learns of the rest."""
    with queue_errors():
        rate = await gateway.broker.spend_request(owner, per_minute)
    told.update(_rate_headers(per_minute, rate))
    if not rate.allowed:
        raise RateLimited(
            f"This API key makes at most {per_minute} requests a minute.",
            retry_after_s=math.ceil(rate.retry_after_s),
        )


def _rate_headers(per_minute: int, rate: Rate) -> dict[str, str]:
    return {
        "x-ratelimit-limit-requests": str(per_minute),
        "x-ratelimit-remaining-requests": str(rate.remaining),
        "x-ratelimit-reset-requests": f"{rate.reset_s:g}s",
    }


def _telling(send: Send, told: dict[str, str]) -> Send:
    async def telling(message: Message) -> None:
        if message["type"] == "http.response.start" and told:
            MutableHeaders(scope=message).update(told)
        await send(message)

    return telling
