"""The client that blocks. Its twin is `aio`; what the two decide is in `flow` and `retry`.

Invariant: an answer that its caller drops (a closed iterator, an interrupt) is cancelled at the service,
unless the caller named it by an idempotency key of their own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import httpx

from service.client.ask import Options, Picture, body
from service.client.errors import Answer, ApiFailure, TwigserveError, of_response, understood
from service.client.flow import JOBS, Flow, ModelList, Outgoing, cut, idempotency
from service.client.retry import ABANDON, Failures, Retry
from service.client.transport import ABANDON_TIMEOUT_S, DEFAULT_URL, http_options
from service.schemas import Description, TokenEvent
from service.schemas_jobs import JobObject

Events = Generator[TokenEvent | Description, None, None]


class Client:
    """timeout_s: of silence, which the service's heartbeats break; not of the whole answer."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retry: Retry | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._http = httpx.Client(**http_options(url, api_key, timeout_s))
        self._retry = retry or Retry()
        self._sleep = sleep
        self._open: set[Flow] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the streams that are still open."""
        for flow in list(self._open):
            self._abandon(flow)
        self._http.close()

    def describe(
        self,
        image: Picture | Sequence[Picture],
        *,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> Description:
        """The whole answer. Streamed underneath, so that it survives a broken connection."""
        return _last(self.stream(image, idempotency_key=idempotency_key, **options))

    def stream(
        self,
        image: Picture | Sequence[Picture],
        *,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> Events:
        """A TokenEvent each round, then the Description. Nothing is sent before the first `next`."""
        asked = {**body(image, options), "stream": True}
        post = Outgoing("POST", "/v1/describe", idempotency(idempotency_key), asked)
        return self._events(Flow(post, self._retry, ours=idempotency_key is None))

    def submit(
        self,
        image: Picture | Sequence[Picture],
        *,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> JobObject:
        """A job that runs without us, once we have its name: see `job`, `wait`, `events`, `cancel`."""
        headers = {"Prefer": "respond-async", **idempotency(idempotency_key)}
        post = Outgoing("POST", "/v1/describe", headers, body(image, options))
        return self._call(JobObject, post, ours=idempotency_key is None)

    def job(self, job_id: str) -> JobObject:
        return self._call(JobObject, Outgoing("GET", f"{JOBS}/{job_id}"))

    def events(self, job_id: str) -> Events:
        """A job's events from its first on."""
        return self._events(Flow(None, self._retry, job=f"{JOBS}/{job_id}", ours=False))

    def wait(self, job_id: str) -> Description:
        """A job's answer when it is there; raises what the job failed with."""
        return _last(self.events(job_id))

    def cancel(self, job_id: str) -> JobObject:
        return self._call(JobObject, Outgoing("DELETE", f"{JOBS}/{job_id}"))

    def models(self) -> list[dict[str, Any]]:
        """The served models with their cards; none where no worker is ready."""
        return self._call(ModelList, Outgoing("GET", "/v1/models")).data

    def _call(self, kind: type[Answer], outgoing: Outgoing, *, ours: bool = False) -> Answer:
        flow = Flow(outgoing, self._retry, ours=ours)
        try:
            while True:
                try:
                    response = self._http.request(**flow.request().arguments())
                    if response.is_success:
                        flow.head(response)
                        return understood(kind, response.content)
                    wait_s = flow.again_in_s(of_response(response))
                except httpx.RequestError as lost:
                    wait_s = flow.again_in_s(lost)
                self._sleep(wait_s)
        except BaseException:
            self._abandon(flow)
            raise

    def _events(self, flow: Flow) -> Events:
        self._open.add(flow)
        try:
            while True:
                try:
                    yield from self._connection(flow)
                    if flow.ended:
                        return
                    wait_s = flow.again_in_s(cut())
                except (httpx.RequestError, ApiFailure) as error:
                    wait_s = flow.again_in_s(error)
                self._sleep(wait_s)
        finally:
            self._open.discard(flow)
            self._abandon(flow)

    def _connection(self, flow: Flow) -> Events:
        with contextlib.closing(self._http.send(self._build(flow.request()), stream=True)) as response:
            if not response.is_success:
                response.read()
                raise of_response(response)
            flow.head(response)
            for chunk in response.iter_bytes():
                yield from flow.chunk(chunk)

    def _build(self, outgoing: Outgoing) -> httpx.Request:
        return self._http.build_request(**outgoing.arguments())

    def _abandon(self, flow: Flow) -> None:
        failures = Failures(ABANDON)
        with contextlib.suppress(httpx.HTTPError, TwigserveError):
            while (outgoing := flow.abandoned()) is not None:
                ask = outgoing.arguments() | {"timeout": ABANDON_TIMEOUT_S}
                while not (response := self._http.request(**ask)).is_success:
                    self._sleep(failures.again_in_s(of_response(response)))
                flow.head(response)


def _last(events: Events) -> Description:
    with contextlib.closing(events):
        for event in events:
            if isinstance(event, Description):
                return event
    raise AssertionError("a stream ends in its answer or an error")
