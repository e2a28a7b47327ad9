"""Steady requests through the load balancer, each followed to its end and checked token by token.

A client as a careful one behaves: told to come back later it does; cut off, it goes on behind the last event
it has. A request is lost if it does not end whole, duplicated if it is told more than the answer holds, hung
if it does not end in time.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

PICTURE = Path(__file__).resolve().parent.parent.parent / "docs/samples/bus.png"
HUNG_S = 120.0
RETRY_S = 0.5


@dataclass
class Request:
    number: int
    began_s: float
    job_url: str = ""
    last_id: str = ""
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    done: dict[str, Any] | None = None
    refusals: int = 0
    resumptions: int = 0
    problem: str = ""

    @property
    def prompt(self) -> str:
        return f"Describe the image. ({self.number})"


@dataclass
class Tally:
    requests: int = 0
    lost: int = 0
    duplicated: int = 0
    hung: int = 0
    refused: int = 0
    resumed: int = 0
    longest_s: float = 0.0
    problems: list[str] = field(default_factory=list)


class Traffic:
    """Sends `per_s` requests a second until told to stop."""

    def __init__(self, url: str, per_s: float, max_tokens: int) -> None:
        self._url = url
        self._pause_s = 1 / per_s
        self._max_tokens = max_tokens
        self._picture = PICTURE.read_bytes()
        self._stop = asyncio.Event()
        self.tally = Tally()

    def stop(self) -> None:
        self._stop.set()

    async def run(self) -> Tally:
        timeout = httpx.Timeout(30.0, pool=None)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with (
            httpx.AsyncClient(base_url=self._url, timeout=timeout, limits=limits, trust_env=False) as client,
            asyncio.TaskGroup() as group,
        ):
            while not self._stop.is_set():
                self.tally.requests += 1
                group.create_task(self._one(client, Request(self.tally.requests, time.monotonic())))
                await asyncio.sleep(self._pause_s)
        return self.tally

    async def _one(self, client: httpx.AsyncClient, request: Request) -> None:
        try:
            async with asyncio.timeout(HUNG_S):
                while request.done is None and not request.problem:
                    await self._attempt(client, request)
        except TimeoutError:
            self.tally.hung += 1
            request.problem = "hung"
        self._count(request)

    async def _attempt(self, client: httpx.AsyncClient, request: Request) -> None:
        try:
            async with self._asked(client, request) as response:
                if response.status_code in (429, 503):
                    request.refusals += 1
                    await asyncio.sleep(RETRY_S)
                elif response.status_code != 200:
                    request.problem = f"HTTP {response.status_code}"
                else:
                    request.job_url = response.headers.get("Content-Location", request.job_url)
                    await self._follow(response, request)
        except httpx.HTTPError:
            request.resumptions += bool(request.job_url)
            await asyncio.sleep(RETRY_S)

    def _asked(self, client: httpx.AsyncClient, request: Request) -> Any:
        """The first time the question, later the events of its job."""
        if request.job_url:
            seen = {"Last-Event-ID": request.last_id} if request.last_id else {}
            return client.stream("GET", f"{request.job_url}/events", headers=seen)
        fields = {"prompt": request.prompt, "max_tokens": str(self._max_tokens), "stream": "true"}
        return client.stream(
            "POST",
            "/v1/describe",
            data=fields,
            files={"image": ("bus.png", self._picture, "image/png")},
            # A question sent again, because the answer's head never came, is still the same job.
            headers={"Idempotency-Key": f"drill-{id(self)}-{request.number}"},
        )

    async def _follow(self, response: httpx.Response, request: Request) -> None:
        async for event_id, name, data in events(response):
            request.last_id = event_id or request.last_id
            if name == "token":
                request.token_ids += data["token_ids"]
                request.text += data["text"]
            elif name == "done":
                request.done = data
            elif name == "error":
                request.problem = str(data["error"]["code"])

    def _count(self, request: Request) -> None:
        tally, done = self.tally, request.done
        tally.refused += request.refusals
        tally.resumed += request.resumptions
        tally.longest_s = max(tally.longest_s, time.monotonic() - request.began_s)
        if done is not None:
            told, whole = len(request.token_ids), done["usage"]["completion_tokens"]
            if told != whole:
                request.problem = f"{told} tokens told, {whole} in the answer"
            elif request.text != done["text"]:
                request.problem = "the text told is not the answer's"
            tally.duplicated += told > whole
        if request.problem and request.problem != "hung":
            tally.lost += 1
        if request.problem:
            tally.problems.append(f"request {request.number}: {request.problem}")


async def events(response: httpx.Response) -> AsyncIterator[tuple[str, str, Any]]:
    """(id, name, data) of each server-sent event."""
    event_id = name = ""
    async for line in response.aiter_lines():
        field_name, _, value = line.partition(": ")
        if field_name == "id":
            event_id = value
        elif field_name == "event":
            name = value
        elif field_name == "data":
            yield event_id, name, json.loads(value)
