"""The client for an event loop. Its twin is `sync`; what the two decide is in `flow` and `retry`.

Invariant: an answer that its caller drops (a closed iterator, a cancelled task) is cancelled at the service,
unless the caller named it by an idempotency key of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import anyio
import anyio.to_thread
import httpx

from service.client.ask import Options, Picture, body
from service.client.errors import Answer, ApiFailure, TwigserveError, of_response, understood
from service.client.flow import JOBS, Flow, ModelList, Outgoing, cut, idempotency
from service.client.retry import ABANDON, Failures, Retry
from service.client.transport import ABANDON_TIMEOUT_S, DEFAULT_URL, http_options
from service.schemas import Description, TokenEvent
from service.schemas_jobs import JobObject

Events = AsyncGenerator[TokenEvent | Description, None]


class AsyncClient:
    """As `Client`, with `await` and `async for`."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retry: Retry | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._http = httpx.AsyncClient(**http_options(url, api_key, timeout_s))
        self._retry = retry or Retry()
        self._sleep = sleep
        self._open: set[Flow] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the streams that are still open: a generator left by a `break` is closed only later."""
        for flow in list(self._open):
            await self._abandon(flow)
        await self._http.aclose()

    async def describe(
        self,
        image: Picture | Sequence[Picture],
        *,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> Description:
        """The whole answer. Streamed underneath, so that it survives a broken connection."""
        return await _last(self.stream(image, idempotency_key=idempotency_key, **options))

    async def stream(
        self,
        image: Picture | Sequence[Picture],
        *,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> Events:
        """A TokenEvent each round, then the Description. Nothing is sent before the first `next`."""
        asked = {**await _read(image, options), "stream": True}
        post = Outgoing("POST", "/v1/describe", idempotency(idempotency_key), asked)
        flow = Flow(post, self._retry, ours=idempotency_key is None)
        async with contextlib.aclosing(self._events(flow)) as events:
            async for event in events:
                yield event

    async def submit(
        self,
        image: Picture | Sequence[Picture],
        *,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> JobObject:
        """A job that runs without us, once we have its name: see `job`, `wait`, `events`, `cancel`."""
        headers = {"Prefer": "respond-async", **idempotency(idempotency_key)}
        post = Outgoing("POST", "/v1/describe", headers, await _read(image, options))
        return await self._call(JobObject, post, ours=idempotency_key is None)

    async def job(self, job_id: str) -> JobObject:
        return await self._call(JobObject, Outgoing("GET", f"{JOBS}/{job_id}"))

    def events(self, job_id: str) -> Events:
        """A job's events from its first on."""
        return self._events(Flow(None, self._retry, job=f"{JOBS}/{job_id}", ours=False))

    async def wait(self, job_id: str) -> Description:
        """A job's answer when it is there; raises what the job failed with."""
        return await _last(self.events(job_id))

    async def cancel(self, job_id: str) -> JobObject:
        return await self._call(JobObject, Outgoing("DELETE", f"{JOBS}/{job_id}"))

    async def models(self) -> list[dict[str, Any]]:
        """The served models with their cards; none where no worker is ready."""
        return (await self._call(ModelList, Outgoing("GET", "/v1/models"))).data

    async def _call(self, kind: type[Answer], outgoing: Outgoing, *, ours: bool = False) -> Answer:
        flow = Flow(outgoing, self._retry, ours=ours)
        try:
            while True:
                try:
                    response = await self._http.request(**flow.request().arguments())
                    if response.is_success:
                        flow.head(response)
                        return understood(kind, response.content)
                    wait_s = flow.again_in_s(of_response(response))
                except httpx.RequestError as lost:
                    wait_s = flow.again_in_s(lost)
                await self._sleep(wait_s)
        except BaseException:
            await self._abandon(flow)
            raise

    async def _events(self, flow: Flow) -> Events:
        self._open.add(flow)
        try:
            while True:
                try:
                    async with contextlib.aclosing(self._connection(flow)) as events:
                        async for event in events:
                            yield event
                    if flow.ended:
                        return
                    wait_s = flow.again_in_s(cut())
                except (httpx.RequestError, ApiFailure) as error:
                    wait_s = flow.again_in_s(error)
                await self._sleep(wait_s)
        finally:
            self._open.discard(flow)
            await self._abandon(flow)

    async def _connection(self, flow: Flow) -> Events:
        response = await self._http.send(self._build(flow.request()), stream=True)
        async with contextlib.aclosing(response):
            if not response.is_success:
                await response.aread()
                raise of_response(response)
            flow.head(response)
            async for chunk in response.aiter_bytes():
                for event in flow.chunk(chunk):
                    yield event

    def _build(self, outgoing: Outgoing) -> httpx.Request:
        return self._http.build_request(**outgoing.arguments())

    async def _abandon(self, flow: Flow) -> None:
        # Shielded: a cancelled task still tells the service.
        failures = Failures(ABANDON)
        with anyio.CancelScope(shield=True), contextlib.suppress(httpx.HTTPError, TwigserveError):
            while (outgoing := flow.abandoned()) is not None:
                ask = outgoing.arguments() | {"timeout": ABANDON_TIMEOUT_S}
                while not (response := await self._http.request(**ask)).is_success:
                    await self._sleep(failures.again_in_s(of_response(response)))
                flow.head(response)


async def _last(events: Events) -> Description:
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, Description):
                return event
    raise AssertionError("a stream ends in its answer or an error")


async def _read(image: Picture | Sequence[Picture], options: Options) -> dict[str, Any]:
    """Files are read in a thread."""
    return await anyio.to_thread.run_sync(body, image, options)
