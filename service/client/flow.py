"""One streamed answer without its network: which request comes next, and what came of the last.

Invariant: after the first head of an answer everything goes to the job it named, behind the last event
seen; so no event is given out twice and none is missed, over however many connections.
Must not know: sockets, threads, event loops: `sync` and `aio` turn it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
from pydantic import BaseModel

from service.client.errors import ApiFailure, Unavailable, of_event, understood
from service.client.events import EventDecoder
from service.client.retry import Failures, Retry
from service.schemas import Description, TokenEvent

JOBS = "/v1/jobs"
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@dataclass(frozen=True)
class Outgoing:
    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    json: dict[str, Any] | None = None

    def arguments(self) -> dict[str, Any]:
        """As httpx's `request` and `build_request` take them."""
        return {"method": self.method, "url": self.path, "headers": self.headers, "json": self.json}


class ModelList(BaseModel):
    """The cards as they are: a newer service's have more fields."""

    data: list[dict[str, Any]]


def idempotency(key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": key or f"client-{uuid.uuid4().hex}"}


class Flow:
    """ours: nobody else can ask for the job, so it ends with the caller's interest in it."""

    def __init__(self, post: Outgoing | None, retry: Retry, *, job: str | None = None, ours: bool) -> None:
        self._post = post
        self._failures = Failures(retry)
        self._last_id = ""
        self._request_id: str | None = None
        self._decoder = EventDecoder()
        self._ours = ours
        self._job = job
        self._unanswered = self._in_doubt = False
        self._ended = False

    def request(self) -> Outgoing:
        if self._job is None and self._post is not None:
            self._unanswered = True
            return self._post
        headers = {"Last-Event-ID": self._last_id} if self._last_id else {}
        return Outgoing("GET", f"{self._job}/events", headers)

    def head(self, response: httpx.Response) -> None:
        self._unanswered = False
        self._decoder = EventDecoder()
        self._request_id = response.headers.get("X-Request-ID")
        self._job = self._job or response.headers.get("Content-Location")

    def chunk(self, chunk: bytes) -> Iterator[TokenEvent | Description]:
        for event in self._decoder.feed(chunk):
            self._last_id = event.id or self._last_id
            if event.type != "error":
                self._failures.count = 0
            if event.type == "token":
                yield understood(TokenEvent, event.data)
            elif event.type == "done":
                answer = understood(Description, event.data)
                self._ended = True
                yield answer
            elif event.type == "error":
                failure = of_event(event.data, self._request_id)
                self._ended = not isinstance(failure, Unavailable)  # then the job may well go on
                raise failure

    @property
    def ended(self) -> bool:
        return self._ended

    def again_in_s(self, error: httpx.RequestError | ApiFailure) -> float:
        """After this the next `request` is due; raises where there is no point in it."""
        self._in_doubt |= self._unanswered and _may_have_arrived(error)
        self._unanswered = False
        return self._failures.again_in_s(error)

    def abandoned(self) -> Outgoing | None:
        """The next request that stops the work which nobody waits for; its `head` comes before another one.

        Where no POST had an answer of the service its job is not known: the same key asks once more, for
        the job alone.
        """
        if self._ended or not self._ours:
            return None
        if self._job is not None:
            self._ended = True
            return Outgoing("DELETE", self._job)
        if (self._unanswered or self._in_doubt) and self._post is not None:
            self._unanswered = self._in_doubt = False
            return replace(self._post, headers=self._post.headers | {"Prefer": "respond-async"})
        return None


def _may_have_arrived(error: httpx.RequestError | ApiFailure) -> bool:
    """A 5xx without a code is that of a proxy, behind which anything may have happened."""
    if isinstance(error, ApiFailure):
        return error.code is None and (error.status or 0) >= 500
    return not isinstance(error, NOT_SENT)


def cut() -> httpx.TransportError:
    """The stream ended in order, before its answer did."""
    return httpx.RemoteProtocolError("The stream ended before the answer did.")
