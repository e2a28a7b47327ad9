"""Clients that do what a careful client does: retry what was refused, resume what broke off, poll a job.

Invariant: each request ends as one `Outcome`. A request that was refused (503, 429) was not accepted and is
sent again; an accepted one has to end in its whole answer. Knows the HTTP API alone.
"""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image

from loadtest.drills.checker import StreamCheck

PAUSE_S = 0.1
REFUSED = frozenset({429, 502, 503})
GOES_ON = "gateway_stopping"


def _small_picture() -> str:
    """As small as the gateway takes it: it makes of it what the model card asks for."""
    data = io.BytesIO()
    Image.new("RGB", (4, 4), "teal").save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


PNG = _small_picture()


@dataclass(frozen=True)
class Refusal:
    """at: monotonic."""

    status: int
    code: str
    seconds: float
    retry_after: str | None
    at: float


@dataclass
class Outcome:
    """where: the job's path. answer: the whole one. error: the code that ended it. check: of a stream."""

    prompt: str
    max_tokens: int
    refusals: list[Refusal] = field(default_factory=list)
    answer: dict[str, Any] | None = None
    error: str | None = None
    hung: bool = False
    breaks: int = 0
    where: str | None = None
    check: StreamCheck | None = None
    ended_at: float = 0.0

    def fail(self, code: str) -> None:
        self.error = self.error or code


class Client:
    """urls: the gateways; a client whose gateway is gone turns to the next one."""

    def __init__(self, urls: Sequence[str], timeout_s: float) -> None:
        self._turns = itertools.cycle(urls)
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(timeout=httpx.Timeout(timeout_s, connect=5.0), trust_env=False)
        self.tokens_seen = 0
        self.jobs: list[str] = []

    async def close(self) -> None:
        await self._http.aclose()

    async def stream(self, prompt: str, max_tokens: int) -> Outcome:
        check = StreamCheck()
        outcome = Outcome(prompt, max_tokens, check=check)
        return await self._bounded(outcome, self._stream(outcome, check))

    async def plain(self, prompt: str, max_tokens: int) -> Outcome:
        outcome = Outcome(prompt, max_tokens)
        return await self._bounded(outcome, self._plain(outcome))

    async def background(self, prompt: str, max_tokens: int) -> Outcome:
        outcome = Outcome(prompt, max_tokens)
        return await self._bounded(outcome, self._background(outcome))

    async def _bounded(self, outcome: Outcome, work: Any) -> Outcome:
        try:
            async with asyncio.timeout(self._timeout_s):
                await work
        except TimeoutError:
            outcome.hung = True
        outcome.ended_at = time.monotonic()
        return outcome

    # --- streamed: from the last event on, wherever it is answered ---

    async def _stream(self, outcome: Outcome, check: StreamCheck) -> None:
        while not check.ended:
            try:
                await self._read_stream(outcome, check)
            except httpx.TransportError:
                outcome.breaks += 1
            if not check.ended:
                await asyncio.sleep(PAUSE_S)
        outcome.answer = check.done
        if check.error is not None:
            outcome.fail(check.error["code"])

    async def _read_stream(self, outcome: Outcome, check: StreamCheck) -> None:
        base = next(self._turns)
        if outcome.where is None:
            request = self._http.build_request(
                "POST", base + "/v1/describe", json=_body(outcome, stream=True)
            )
        else:
            headers = {} if check.last_id is None else {"Last-Event-ID": check.last_id}
            request = self._http.build_request("GET", f"{base}{outcome.where}/events", headers=headers)
        began = time.monotonic()
        response = await self._http.send(request, stream=True)
        try:
            if response.status_code != 200:
                await response.aread()
                self._refused(outcome, response, began)
                return
            if outcome.where is None:
                self._accept(outcome, response.headers["Content-Location"])
            async for event, event_id, data in events_of(response.aiter_lines()):
                if event == "error" and data["error"]["code"] == GOES_ON:
                    outcome.breaks += 1
                    break
                check.see(event, event_id, data)
                self.tokens_seen += len(data.get("token_ids", ()))
        finally:
            await response.aclose()

    # --- whole: a key makes the retry the same request ---

    async def _plain(self, outcome: Outcome) -> None:
        key = {"Idempotency-Key": uuid.uuid4().hex}
        while outcome.answer is None and outcome.error is None:
            response = await self._send(outcome, "POST", "/v1/describe", json=_body(outcome), headers=key)
            if response is not None and response.status_code == 200:
                self._accept(outcome, response.headers["Content-Location"])
                outcome.answer = response.json()

    # --- in the background ---

    async def _background(self, outcome: Outcome) -> None:
        headers = {"Prefer": "respond-async", "Idempotency-Key": uuid.uuid4().hex}
        while outcome.where is None and outcome.error is None:
            response = await self._send(outcome, "POST", "/v1/describe", json=_body(outcome), headers=headers)
            if response is not None and response.status_code == 202:
                self._accept(outcome, response.headers["Location"])
        while outcome.answer is None and outcome.error is None:
            await asyncio.sleep(PAUSE_S)
            response = await self._send(outcome, "GET", outcome.where or "")
            if response is None or response.status_code != 200:
                continue
            job = response.json()
            if job["status"] not in ("queued", "running"):
                outcome.answer = job.get("result")
                if outcome.answer is None:
                    outcome.fail(job["error"]["code"])

    async def _send(self, outcome: Outcome, method: str, path: str, **options: Any) -> httpx.Response | None:
        """None: the connection broke, or it was refused for now."""
        began = time.monotonic()
        try:
            response = await self._http.request(method, next(self._turns) + path, **options)
        except httpx.TransportError:
            outcome.breaks += 1
            await asyncio.sleep(PAUSE_S)
            return None
        if response.status_code >= 300:
            self._refused(outcome, response, began)
            await asyncio.sleep(PAUSE_S)
            return None
        return response

    def _refused(self, outcome: Outcome, response: httpx.Response, began: float) -> None:
        code = response.json()["error"]["code"]
        if response.status_code not in REFUSED:
            outcome.fail(code)
            if outcome.check is not None:
                outcome.check.error = response.json()["error"]
        now = time.monotonic()
        again = response.headers.get("Retry-After")
        outcome.refusals.append(Refusal(response.status_code, code, now - began, again, now))

    def _accept(self, outcome: Outcome, where: str) -> None:
        outcome.where = where
        self.jobs.append(where.rpartition("/")[2])


def _body(outcome: Outcome, *, stream: bool = False) -> dict[str, Any]:
    return {"image": PNG, "prompt": outcome.prompt, "max_tokens": outcome.max_tokens, "stream": stream}


async def events_of(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, str, dict[str, Any]]]:
    """(event, id, data) of a stream of server-sent events; comments are left out."""
    fields: dict[str, str] = {}
    async for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "event" in fields:
            yield fields["event"], fields.get("id", ""), json.loads(fields["data"])
            fields = {}
        else:
            fields = {}
