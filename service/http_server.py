"""The HTTP server under the application: uvicorn, with patience that ends.

Invariant: a connection that sends no whole request head in time, or too large a one, or does not read what it
asked for, is closed; so no client holds memory or a place in admission by doing nothing. (Slow bodies are
`exchange`'s: they get an answer. One that was answered before its end has as long for its rest.)
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
    limits = {
        "head_timeout_s": head_timeout_s,
        "rest_timeout_s": settings.body_timeout_s,
        "stall_timeout_s": stall_timeout_s,
    }
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
    rest_timeout_s: float
    stall_timeout_s: float

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._in_body = self._head_begun = False
        self._head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None  # of a head, or of the rest of an answered body
        self._stall_timer: asyncio.TimerHandle | None = None
        self._expect(self.head_timeout_s)

    def data_received(self, data: bytes) -> None:
        before, was_in_body = self.cycle, self._is_in_body()
        super().data_received(data)
        if self.cycle is not before:
            self._came()
        elif self.cycle is None or self.cycle.response_complete:
            if was_in_body:
                self._rest_received()
            else:
                self._head_received(len(data))

    def _head_received(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        self._expect(self.head_timeout_s)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(HeadTooLarge(f"The request's head has more than {MAX_HEAD_BYTES} bytes."))

    def _rest_received(self) -> None:
        """Of a body that was answered before its end; uvicorn drops it, and its keep-alive timer with it."""
        if self._is_in_body():
            self._expect(self.rest_timeout_s)
            return
        self._came()
        self._unset_keepalive_if_required()
        idle, close = self.timeout_keep_alive, self.timeout_keep_alive_handler
        self.timeout_keep_alive_task = self.loop.call_later(idle, close)
        if self._has_begun_a_head():
            self._expect(self.head_timeout_s)

    def on_message_begin(self) -> None:
        """httptools calls this, and the two below."""
        self._head_begun = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_body, self._head_begun = True, False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    def _is_in_body(self) -> bool:
        """Between a request's head and its end."""
        h11 = getattr(self, "conn", None)  # the other parser; it tells by its state
        return self._in_body if h11 is None else str(h11.their_state) == "SEND_BODY"

    def _has_begun_a_head(self) -> bool:
        """Of the next request, behind the last one's end."""
        h11 = getattr(self, "conn", None)
        return self._head_begun if h11 is None else bool(h11.trailing_data[0])

    def connection_lost(self, exc: Exception | None) -> None:
        self._came()
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

    def _expect(self, within_s: float) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(within_s, self.transport.abort)

    def _came(self) -> None:
        self._head_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

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
