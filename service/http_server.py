"""The HTTP server under the application: uvicorn, with patience that ends.

Invariant: a connection that sends no whole request head in time, or too large a one, or does not read what it
asked for, is closed; so no client holds memory or a place in admission by doing nothing. (Slow bodies are
`exchange`'s: they get an answer.)
Must not know: routes, settings of anything else.
"""

from __future__ import annotations

import asyncio
import json

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from service.errors import ApiError, BadRequest, HeadTooLarge
from service.settings import GatewaySettings

HEAD_TIMEOUT_S = 10.0
# With full buffers, time in which not even the half of them was read.
STALL_TIMEOUT_S = 30.0
MAX_HEAD_BYTES = 32 * 1024
# Longer than a proxy keeps an idle connection (nginx: 60 s), which must not use one that is being closed.
KEEP_ALIVE_S = 75


def server_config(
    app: FastAPI,
    settings: GatewaySettings,
    *,
    head_timeout_s: float = HEAD_TIMEOUT_S,
    stall_timeout_s: float = STALL_TIMEOUT_S,
) -> uvicorn.Config:
    limits = {"head_timeout_s": head_timeout_s, "stall_timeout_s": stall_timeout_s}
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=type("LimitedProtocol", (GuardedProtocol,), limits),
        ws="none",
        log_config=None,
        server_header=False,
        access_log=False,  # `middleware` has a line for every request
        proxy_headers=False,  # nothing here asks whence a request came
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_keep_alive=KEEP_ALIVE_S,
    )


class GuardedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's own, whichever parser it has, between two timers."""

    head_timeout_s: float
    stall_timeout_s: float

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._head_came()
        elif self.cycle is None or self.cycle.response_complete:
            self._head_bytes += len(data)
            self._expect_head()
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(HeadTooLarge(f"The request's head has more than {MAX_HEAD_BYTES} bytes."))

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        self._cancel_stall()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._cancel_stall()
        self._stall_timer = self.loop.call_later(self.stall_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._cancel_stall()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """In place of uvicorn's plain text."""
        self._refuse(BadRequest(msg, code="invalid_http"))

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout_s, self.transport.abort)

    def _head_came(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _cancel_stall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _refuse(self, error: ApiError) -> None:
        self.transport.write(_raw_response(error))
        self.transport.close()


def _raw_response(error: ApiError) -> bytes:
    """What cannot be parsed has no request to answer through the application."""
    body = json.dumps(error.body()).encode()
    reason = {400: "Bad Request", 431: "Request Header Fields Too Large"}[error.status]
    head = f"HTTP/1.1 {error.status} {reason}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
