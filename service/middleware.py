"""What every HTTP exchange passes through: its request id, its line in the log, and the limit on its body.

Invariant: every response carries `X-Request-ID`, and so does the request's one line in the log, beside the
`job_id` and `err` that whoever answers leaves in the request's state; none is taken for another type than it
says; no more than the limit of a body is ever handed on.
Plain ASGI, because starlette's BaseHTTPMiddleware hides a client's disconnect from the route.
Must not know: routes, or what is in a body.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import time
import uuid

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import REQUEST_ID_HEADER, ApiError, TooLarge, as_api_error, error_response

log = logging.getLogger("twigserve.gateway")

# Asked every few seconds by machines.
PROBED = frozenset({"/livez", "/readyz", "/metrics"})
_REQUEST_ID, _SNIFFING = REQUEST_ID_HEADER.lower().encode(), b"x-content-type-options"
SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# A client that is still sending when the connection closes loses the answer to a TCP reset; so the rest of
# a body that is too large is read and dropped, within these bounds, before it is refused.
DRAIN_FACTOR = 4
DRAIN_S = 5.0


async def drain(receive: Receive, max_bytes: float = math.inf) -> None:
    """Reads what is left of a body and drops it."""
    dropped = 0
    with contextlib.suppress(TimeoutError, ApiError):
        async with asyncio.timeout(DRAIN_S):
            while dropped <= max_bytes:
                message = await receive()
                dropped += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def header(scope: Scope, name: bytes) -> bytes:
    """The first of this (lower-case) name; empty where there is none. For what every request is asked."""
    for given, value in scope["headers"]:
        if given == name:
            return bytes(value)
    return b""


class RequestId:
    """Keeps the client's own id if it is a sane one, else makes one; the worker's lines carry it too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope, _REQUEST_ID).decode("latin-1")
        request_id = given if SANE_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        began, status, defect = time.monotonic(), 0, None
        own = ((_REQUEST_ID, request_id.encode()), (_SNIFFING, b"nosniff"))

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                others = [pair for pair in message["headers"] if pair[0] not in (_REQUEST_ID, _SNIFFING)]
                message = {**message, "headers": [*others, *own]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as exc:  # answered further out, where no id is known
            status, defect = status or as_api_error(exc).status, exc
            scope["state"]["err"] = as_api_error(exc).code
            raise
        finally:
            _log_request(scope, status, time.monotonic() - began, defect)


def _log_request(scope: Scope, status: int, seconds: float, defect: Exception | None) -> None:
    """status 0: the client left before it was answered."""
    level = logging.DEBUG if scope["path"] in PROBED else logging.INFO
    level = logging.ERROR if defect else level
    if not log.isEnabledFor(level):
        return
    state = scope["state"]
    fields = {name: state[name] for name in ("request_id", "job_id", "err") if name in state}
    fields |= {"method": scope["method"], "path": scope["path"], "status": status}
    log.log(level, "request", exc_info=defect, extra=fields | {"seconds": round(seconds, 4)})


class BodyLimit:
    """413 at once where Content-Length tells, else as soon as the bytes that came are too many."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = header(scope, b"content-length")
        if announced.isdigit() and int(announced) > self._max_bytes:
            error, metrics = self._error(), scope["app"].state.gateway.metrics
            metrics.failed(error.code, error.status)  # what `_counted` raises is for whoever reads to count
            await drain(receive, DRAIN_FACTOR * self._max_bytes)
            await error_response(Request(scope), error)(scope, receive, send)
            return
        await self._app(scope, self._counted(receive), send)

    def _counted(self, receive: Receive) -> Receive:
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen <= self._max_bytes:
                return message
            if message.get("more_body", False):
                await drain(receive, DRAIN_FACTOR * self._max_bytes)
            raise self._error()

        return counted

    def _error(self) -> TooLarge:
        return TooLarge(
            f"The body is too large; at most {self._max_bytes} bytes are read.", code="body_too_large"
        )
